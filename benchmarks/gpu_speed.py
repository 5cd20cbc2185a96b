"""Measurements of ``make gpu``: training steps of large backbones, the loss at many classes, and what we add to a step.

Ours is the learner's own step on a batch that is on the device already; the bare loop is what a user would write. Times
are medians of steps that end with a synchronisation. The share of the peak counts the operations of forward and
backward pass, not those of recomputed activations, against the dense peak of the data sheet.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bare_loop import bare_step
from gpu_cases import Figures, Setup
from loss_variants import Problem, ours

from hsadml_dist.checkpoint.background import CheckpointSaver
from hsadml_dist.checkpoint.layout import TrainingProgress
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import CheckpointConfig, DataConfig, EngineConfig, LossConfig, ModelConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.models.activations import meta_backbone
from hsadml_dist.models.flops import forward_flops
from hsadml_dist.models.network import EmbeddingNet, InputSpec, build_model
from hsadml_dist.run.folder import RunFolder

CLASSES, SEED, EMBEDDING = 100, 0, 512
BACKWARD_TOO = 3
"""A training step takes three times the operations of a forward pass."""
PEAKS = {
    "H200": {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
}
"""Dense operations per second by NVIDIA's data sheets, SXM."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A backbone to measure."""

    backbone: str
    size: int
    batch: int
    spatial_dims: int = 2

    @property
    def spec(self) -> InputSpec:
        """The images of the backbone."""
        return InputSpec(image_size=self.size, spatial_dims=self.spatial_dims)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way of computing a step."""

    precision: str = "fp32"
    tf32: bool = False
    channels_last: bool = True
    compiled: bool = False
    recompute: bool = False

    @property
    def peak(self) -> str:
        """Which peak bounds it."""
        return "tf32" if self.tf32 and self.precision == "fp32" else self.precision


SUBJECTS = {
    "ViT-B/16": Subject(backbone="monai_vit_base_16", size=224, batch=128),
    "ResNet-50": Subject(backbone="monai_resnet50", size=224, batch=128),
    "ViT-L/16": Subject(backbone="monai_vit_large_16", size=224, batch=64),
    "3D ViT-B/16": Subject(backbone="monai_vit_base_16", size=96, batch=16, spatial_dims=3),
    "Swin encoder": Subject(backbone="monai_swinunetr_encoder", size=224, batch=64),
}
MODES = {
    "bf16": Mode(precision="bf16"),
    "tf32": Mode(tf32=True),
    "fp32": Mode(),
    "bf16, recomputed": Mode(precision="bf16", recompute=True),
    "bf16, channels first": Mode(precision="bf16", channels_last=False),
    "bf16, compiled": Mode(precision="bf16", compiled=True),
}
TINY = {
    "small ResNet": Subject(backbone="resnet_gn_tiny", size=32, batch=4),
    "small ResNet 3D": Subject(backbone="resnet_gn_tiny", size=16, batch=2, spatial_dims=3),
}
COMPILED = ("ViT-B/16", "ResNet-50", "small ResNet")
CHANNELS_FIRST = ("ResNet-50", "small ResNet")


def models(setup: Setup) -> Figures:
    """Measure each backbone in each mode, ours and bare."""
    figures: Figures = {"rows": []}
    for name, subject in (TINY if setup.tiny else SUBJECTS).items():
        flops = _step_flops(subject)
        net = build_model(
            subject.backbone,
            embedding_dim=EMBEDDING,
            image_size=subject.size,
            spatial_dims=subject.spatial_dims,
            seed=SEED,
        )
        for label, mode in MODES.items():
            if mode.compiled and (name not in COMPILED or setup.device == "cpu"):
                continue
            if not mode.channels_last and name not in CHANNELS_FIRST:
                continue
            for loop in ("ours", "bare"):
                if loop == "bare" and (mode.recompute or not mode.channels_last):
                    continue
                row = {"backbone": name, "mode": label, "loop": loop, "batch": subject.batch}
                figures["rows"].append(row | _measure(loop, net, subject, mode, flops, setup))
                setup.save(figures)
    best = max(figures["rows"], key=lambda row: row.get("share_of_peak") or 0)
    return figures | {"best share of peak": best.get("share_of_peak") or "unknown"}


def loss(setup: Setup) -> Figures:
    """Time the loss at many classes, with stored and recomputed cosines."""
    batch, dim, classes = (32, 16, 1000) if setup.tiny else (1024, 512, 1_000_000)
    figures: Figures = {"rows": []}
    for backward in ("store", "stream"):
        problem = Problem(loss="cosface", batch=batch, dim=dim, classes=classes, device=setup.device)
        way = ours(problem, backward)

        def step(way=way) -> None:
            way.clear()
            way.step()

        seconds, mib = _timed(step, setup, steps=5)
        figures["rows"].append(
            {"backward": backward, "classes": classes, "ms": round(1e3 * seconds, 2), "peak_mib": mib}
        )
        setup.save(figures)
    return figures | {row["backward"]: f"{row['ms']} ms" for row in figures["rows"]}


def step(setup: Setup) -> Figures:
    """Compare our step on a small network, where its fixed cost shows, with a bare loop."""
    subject = TINY["small ResNet"]
    net = build_model(subject.backbone, embedding_dim=EMBEDDING, image_size=subject.size, seed=SEED)
    flops = _step_flops(subject)
    seconds = {
        loop: _measure(loop, net, subject, Mode(), flops, setup, steps=5 if setup.tiny else 100)["ms"]
        for loop in ("ours", "bare")
    }
    return {f"{loop}, ms": value for loop, value in seconds.items()}


def stall(setup: Setup) -> Figures:
    """Time how long a background save holds the training, beside a save in the foreground."""
    count = 100_000 if setup.tiny else 100_000_000
    tensors = {f"weight {number}": torch.randn(count // 100, device=setup.device) for number in range(100)}
    seconds: dict[str, float] = {}
    for background in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder) / "run")
            attempt = run.attempt(1)
            attempt.path.mkdir(parents=True)
            attempt.parent.write_text('{"checkpoint": null}\n')
            config = CheckpointConfig(background=background)
            saver = CheckpointSaver(run, attempt, SoloComm(torch.device(setup.device)), config, lambda name: None)
            times = []
            for number in range(1, 4):
                _synchronize(setup)
                began = time.perf_counter()
                saver.save_async(_state(tensors, number))
                times.append(time.perf_counter() - began)
                saver.wait()
        seconds["background" if background else "foreground"] = round(statistics.median(times[1:]), 3)
    return {f"{way}, s": value for way, value in seconds.items()} | {"gib": round(count * 4 / 2**30, 2)}


def _state(tensors: dict[str, torch.Tensor], step: int) -> TrainingState:
    progress = TrainingProgress(
        step=step, consumed=step, seed=SEED, fingerprint="-", data_digest="-", world_size=1, skipped=0
    )
    return TrainingState(groups={"model": tensors}, progress=progress, rows=None)


def _step_flops(subject: Subject) -> int:
    """Return the operations of a training step per image."""
    network, _ = meta_backbone(subject.backbone, subject.spec)
    image = torch.zeros(1, 1, *[subject.size] * subject.spatial_dims, device="meta")
    return BACKWARD_TOO * forward_flops(network, image)


def _measure(
    loop: str, net: EmbeddingNet, subject: Subject, mode: Mode, flops: int, setup: Setup, steps: int = 10
) -> Figures:
    """Return images/s, milliseconds, peak memory and share of the peak; or why there are none."""
    with _float32(mode.tf32):
        try:
            run = {"ours": _ours, "bare": _bare}[loop](copy.deepcopy(net), subject, mode, setup)
            seconds, mib = _timed(run, setup, steps=2 if setup.tiny else steps)
        except torch.OutOfMemoryError:
            return {"reason": "out of memory"}
    achieved = flops * subject.batch / seconds
    peak = _peak(setup, mode)
    return {
        "images_per_second": round(subject.batch / seconds, 1),
        "ms": round(1e3 * seconds, 2),
        "peak_mib": mib,
        "tflops": round(achieved / 1e12, 3),
        "share_of_peak": None if peak is None else round(achieved / peak, 3),
    }


def _ours(net: EmbeddingNet, subject: Subject, mode: Mode, setup: Setup) -> Callable[[], object]:
    comm = SoloComm(torch.device(setup.device))
    learner = build_learner(_recipe(subject, mode), net, CLASSES, comm, 10**6)
    if not mode.channels_last:
        learner.engine.model.to(memory_format=torch.contiguous_format)
        learner._memory_format = torch.contiguous_format
    batch = _batch(subject, setup, torch.contiguous_format if not mode.channels_last else net.spec.memory_format)
    numbers = iter(range(1, 10**6))
    return lambda: learner.step(next(numbers), batch)


def _bare(net: EmbeddingNet, subject: Subject, mode: Mode, setup: Setup) -> Callable[[], object]:
    comm = SoloComm(torch.device(setup.device))
    net.to(setup.device).to(memory_format=net.spec.memory_format)
    model = torch.compile(net) if mode.compiled else net
    batch = _batch(subject, setup, net.spec.memory_format)
    inner = bare_step(model, comm, _recipe(subject, mode), batch, CLASSES)

    def step() -> None:
        with torch.autocast(setup.device, torch.bfloat16, enabled=mode.precision == "bf16"):
            inner()

    return step


def _recipe(subject: Subject, mode: Mode) -> Recipe:
    engine = EngineConfig(
        precision=mode.precision, compile=mode.compiled, activation_checkpointing=mode.recompute, clip_norm=5.0
    )
    return Recipe(
        data=DataConfig(shards="-", image_size=subject.size),
        model=ModelConfig(name=subject.backbone, embedding_dim=EMBEDDING),
        loss=LossConfig(name="softmax"),
        train=TrainConfig(steps=10**6, global_batch=subject.batch, seed=SEED),
        engine=engine,
    )


def _batch(subject: Subject, setup: Setup, memory_format: torch.memory_format) -> Batch:
    generator = torch.Generator().manual_seed(SEED)
    image = torch.randn(subject.batch, 1, *[subject.size] * subject.spatial_dims, generator=generator)
    label = torch.arange(subject.batch) % CLASSES
    batch = Batch(image=image, label=label, keys=tuple(f"{i:016x}" for i in range(subject.batch)))
    image = image.to(setup.device).to(memory_format=memory_format)
    return replace(batch, image=image, label=label.to(setup.device))


def _timed(step: Callable[[], object], setup: Setup, *, steps: int) -> tuple[float, float]:
    """Return the median seconds of a step and the peak of allocated MiB on the device (0 on a CPU)."""
    for _ in range(1 if setup.tiny else 3):
        step()
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        _synchronize(setup)
        began = time.perf_counter()
        step()
        _synchronize(setup)
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**20 if setup.device == "cuda" else 0.0
    return statistics.median(seconds), round(peak)


def _synchronize(setup: Setup) -> None:
    if setup.device == "cuda":
        torch.cuda.synchronize()


def _peak(setup: Setup, mode: Mode) -> float | None:
    if setup.device == "cpu":
        return None
    name = torch.cuda.get_device_name()
    return next((peaks[mode.peak] for gpu, peaks in PEAKS.items() if gpu in name), None)


@contextlib.contextmanager
def _float32(tf32: bool) -> Iterator[None]:
    """Set whether fp32 products may be computed as TF32, and restore it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
