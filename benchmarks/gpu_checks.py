"""Checks of ``make gpu``: the arithmetic of the training on a GPU against fp64 and against the CPU."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from gpu_cases import Figures, Setup
from gpu_wheels import is_installed

from hsadml_dist.checkpoint.background import CheckpointSaver
from hsadml_dist.checkpoint.layout import TrainingProgress
from hsadml_dist.checkpoint.load import choose_checkpoint, load_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm, SoloComm, TorchComm
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.engine.base import Groups
from hsadml_dist.engine.learner import Learner, build_learner
from hsadml_dist.evaluation.knn import nearest
from hsadml_dist.losses.centres import Centres
from hsadml_dist.losses.distributed_loss import DistributedLoss, LossCompute
from hsadml_dist.losses.margins import LOSSES, build_margin
from hsadml_dist.model_factory import build_network
from hsadml_dist.run.folder import RunFolder

SEED, STEP = 0, 5
BOUNDS = {"fp32": 1e-4, "bf16": 1e-2}
"""Largest relative error of loss and gradients. Under bf16 the embeddings and their gradients have 8 bits."""
CLASSES, SIDE, BATCH, TOTAL = 5, 32, 24, 40


def machine(setup: Setup) -> Figures:
    """Name the device, its driver and the versions of the packages."""
    if setup.device == "cuda" and not torch.cuda.is_available():
        raise AssertionError("torch sees no GPU; --device cpu runs without one")
    names = ("torch", "deepspeed", "monai", "pytorch-metric-learning")
    versions = {name: importlib.metadata.version(name) for name in names if is_installed(name)}
    facts: Figures = {"python": platform.python_version(), "versions": versions, "cpus": os.cpu_count()}
    if setup.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30),
            "cuda": torch.version.cuda,
        }
        facts |= {"driver": _driver(), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return facts


def losses(setup: Setup) -> Figures:
    """Compare loss and gradients of every loss with fp64 on the CPU: fp32 and bf16 embeddings, both backward modes."""
    worst: Figures = {}
    batch, classes, dim = (16, 33, 8) if setup.tiny else (256, 5001, 128)
    for name in LOSSES:
        for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            emb_ND, label_N = _samples(batch, classes, dim, dtype)
            truth = _loss(name, emb_ND.double(), label_N, classes, torch.device("cpu"), "store")
            for backward in ("store", "stream"):
                found = _loss(name, emb_ND, label_N, classes, torch.device(setup.device), backward)
                error = max(map(_relative, found, truth))
                assert error <= BOUNDS[label], f"{name}, {label}, {backward}: error {error:.1e}"
                worst[label] = max(worst.get(label, 0.0), error)
    return {f"largest error, {label}": float(f"{error:.2g}") for label, error in worst.items()} | {
        "losses": len(LOSSES)
    }


def groups(setup: Setup) -> Figures:
    """Start a training group (nccl on a GPU) and a control group (gloo), use both at once, and close them; twice."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        comm = _comm(setup)
        total = comm.all_reduce_sum(torch.ones(1 << 20, device=comm.device))
        assert comm.all_gather_json({"rank": 0}) == [{"rank": 0}]
        assert float(total.sum()) == 1 << 20
        backend = dist.get_backend(comm.group)
        second = comm.new_train_group()
        assert float(second.all_reduce_sum(torch.ones(1, device=comm.device))) == 1.0
        comm.close()
        assert not dist.is_initialized()
        seconds.append(round(time.perf_counter() - began, 2))
    return {"backend": backend, "seconds": seconds}


def guard(setup: Setup) -> Figures:
    """Skip a step with NaN without a change of state; average weights; clip as on the CPU."""
    recipe = _recipe(optim=OptimConfig(lr=0.01, warmup_steps=2, ema_decay=0.9), engine=EngineConfig(clip_norm=0.05))
    reference, learner = _learner(recipe, "cpu"), _learner(recipe, setup.device)
    for step in (1, 2):
        norms = [one.step(step, _batch(step)).grad_norm for one in (reference, learner)]
    assert min(norms) > recipe.engine.clip_norm, "nothing was clipped"
    before = _flat(learner)
    bad = _batch(3)
    bad.image[2, 0, 1, 1] = math.nan
    report = learner.step(3, bad)
    assert report.skipped is not None and [key for key, _ in report.skipped.suspects] == [bad.keys[2]]
    assert torch.equal(before, _flat(learner)), "a skipped step changed the state"
    error = _relative(before, _flat(reference))
    assert error < 1e-3, f"clipped steps differ from the CPU's by {error:.1e}"
    return {"difference from the CPU": float(f"{error:.2g}"), "gradient norm": round(norms[1], 3)}


def devices(setup: Setup) -> Figures:
    """Move a training from the CPU to the device and back by checkpoint files, without a changed bit."""
    learners = [_learner(_recipe(), device) for device in ("cpu", setup.device)]
    for step, (source, target) in enumerate((learners, learners[::-1]), start=1):
        source.step(step, _batch(step))
        with tempfile.TemporaryDirectory() as folder:
            run, saver = open_saver(Path(folder), torch.device(setup.device), background=False)
            saver.save(training_state(source.state(), step))
            name = choose_checkpoint(run, SoloComm()).name
            assert name is not None, "the checkpoint is damaged"
            target.load(load_checkpoint(run, name).groups)
        assert torch.equal(_flat(source), _flat(target)), f"step {step} differs after its checkpoint was loaded"
    return {"values": len(_flat(learners[0])), "moved": "bit-equal"}


def engines(setup: Setup) -> Figures:
    """Compare a step of DDP with that of the bare network, and a step of each ZeRO stage with DDP's."""
    comm, recipe = _comm(setup), _recipe()
    bare = _learner(recipe, setup.device)
    start = {name: {key: value.clone() for key, value in group.items()} for name, group in bare.state().items()}
    bare.step(1, _batch(1))
    expected, differences = _flat(bare), Figures()
    stages = range(4) if is_installed("deepspeed") else ()
    configs = {"ddp": EngineConfig()} | {f"zero {n}": EngineConfig(name="deepspeed", zero_stage=n) for n in stages}
    for name, config in configs.items():
        learner = build_learner(replace(recipe, engine=config), build_network(recipe), CLASSES, comm, TOTAL)
        learner.load(start)
        learner.step(1, _batch(1))
        difference = float((_flat(learner) - expected).abs().max())
        assert difference < 1e-5, f"{name} differs from the bare network by {difference:.1e}"
        differences[name] = float(f"{difference:.2g}")
        setup.save(differences)
    comm.close()
    return differences if stages else differences | {"deepspeed": "not installed"}


def knn(setup: Setup) -> Figures:
    """Find the same neighbours in the same order as on the CPU, ties included."""
    generator = torch.Generator().manual_seed(SEED)
    queries, gallery, dim = (50, 300, 16) if setup.tiny else (2000, 50_000, 128)
    gallery_RD = torch.randn(gallery, dim, generator=generator)
    gallery_RD[1::7] = gallery_RD[::7][: len(gallery_RD[1::7])]
    queries_QD = torch.randn(queries, dim, generator=generator)
    expected = nearest(queries_QD, gallery_RD, k=11, block=8192)
    began = time.perf_counter()
    found = nearest(queries_QD.to(setup.device), gallery_RD.to(setup.device), k=11, block=8192)
    positions = found[1].cpu()
    seconds = time.perf_counter() - began
    assert torch.equal(positions, expected[1]) and torch.equal(found[0].cpu(), expected[0])
    return {"queries": queries, "gallery": gallery, "seconds": round(seconds, 3)}


def _samples(batch: int, classes: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    emb_ND = torch.randn(batch, dim, generator=generator).to(dtype)
    return emb_ND, torch.randint(classes, (batch,), generator=generator)


def _loss(
    name: str, emb_ND: torch.Tensor, label_N: torch.Tensor, classes: int, device: torch.device, backward: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss, gradient of the embeddings and gradient of the centres."""
    emb_ND = emb_ND.detach().to(device).requires_grad_()
    centres = Centres(classes, emb_ND.shape[1], SEED)
    compute = LossCompute(backward=backward)  # type: ignore[arg-type]
    loss = DistributedLoss(centres, build_margin(name), SoloComm(device), compute=compute)
    loss.to_training_dtype(torch.float64 if emb_ND.dtype == torch.float64 else torch.float32)
    value = loss(emb_ND, label_N.to(device), step=STEP, count=len(label_N))
    value.backward()
    return value.detach(), emb_ND.grad, loss.centres.weight.grad


def _relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    found, truth = found.detach().cpu().double(), truth.detach().cpu().double()
    return float((found - truth).norm() / truth.norm())


def _recipe(optim: OptimConfig | None = None, engine: EngineConfig | None = None) -> Recipe:
    return Recipe(
        data=DataConfig(shards="none", image_size=SIDE),
        model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
        loss=LossConfig(name="sphereface"),
        optim=optim or OptimConfig(lr=0.01, warmup_steps=2),
        train=TrainConfig(steps=TOTAL, global_batch=BATCH, on_nonfinite="skip"),
        engine=engine or EngineConfig(),
    )


def _learner(recipe: Recipe, device: str) -> Learner:
    return build_learner(recipe, build_network(recipe), CLASSES, SoloComm(torch.device(device)), TOTAL)


def _batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(BATCH, 1, SIDE, SIDE, generator=generator)
    label = torch.randint(CLASSES, (BATCH,), generator=generator)
    return Batch(image=image, label=label, keys=tuple(f"{step:08x}{number:08x}" for number in range(BATCH)))


def _tensors(learner: Learner) -> Iterator[torch.Tensor]:
    state = learner.state()
    for group in sorted(state):
        for name in sorted(state[group]):
            yield state[group][name].detach().cpu()


def _flat(learner: Learner) -> torch.Tensor:
    """Return the whole state as one fp64 vector."""
    return torch.cat([tensor.double().flatten() for tensor in _tensors(learner)])


def open_saver(folder: Path, device: torch.device, *, background: bool) -> tuple[RunFolder, CheckpointSaver]:
    """Return a new run folder and what saves checkpoints in it."""
    run = RunFolder(folder / "run")
    attempt = run.attempt(1)
    attempt.path.mkdir(parents=True)
    attempt.parent.write_text('{"checkpoint": null}\n')
    config = CheckpointConfig(background=background)
    return run, CheckpointSaver(run, attempt, SoloComm(device), config, lambda name: None)


def training_state(groups: Groups, step: int) -> TrainingState:
    """Return the state of a run that never started, as a checkpoint holds it."""
    progress = TrainingProgress(
        step=step, consumed=step, seed=SEED, fingerprint="-", data_digest="-", world_size=1, skipped=0
    )
    return TrainingState(groups=groups, progress=progress, rows=None)


def _comm(setup: Setup) -> Comm:
    """Return real process groups of one rank."""
    device = torch.device(setup.device, 0) if setup.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return TorchComm(Topology(), dist.HashStore(), device, 60)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"
