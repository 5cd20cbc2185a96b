"""Measurements of ``make gpu``: training steps of large backbones, the loss at many classes, and what we add to a step.

Ours is the learner's own step on a batch that is on the device already; the bare loop is what a user would write. Times
are medians of steps that end with a synchronisation. The share of the peak counts the operations of forward and
backward pass, not those of recomputed activations, against the dense peak of the data sheet.
"""

from __future__ import annotations

import copy
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bare_loop import bare_step
from gpu_cases import Figures, Setup
from gpu_checks import open_saver, training_state
from gpu_wheels import is_installed
from loss_variants import Problem, Way, metric_learning, ours

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, LossConfig, ModelConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.distributed.device import configure_kernels
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.models.activations import meta_backbone
from hsadml_dist.models.flops import forward_flops
from hsadml_dist.models.network import EmbeddingNet, InputSpec, build_model

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

    def spec(self, *, channels_last: bool = True) -> InputSpec:
        """Return the shape and memory format of its images."""
        return (InputSpec if channels_last else ChannelsFirst)(image_size=self.size, spatial_dims=self.spatial_dims)

    def network(self) -> EmbeddingNet:
        """Return a new copy of the network."""
        return copy.deepcopy(_initial_network(self))


class ChannelsFirst(InputSpec):
    """Images in PyTorch's own memory format."""

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.contiguous_format


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way of computing a step."""

    precision: str = "fp32"
    tf32: bool = False
    channels_last: bool = True
    deterministic: bool = True
    compiled: bool = False
    recompute: bool = False

    @property
    def has_bare_loop(self) -> bool:
        """Whether the bare loop is measured too."""
        return self.channels_last and self.deterministic and not self.recompute

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
    "bf16, any kernels": Mode(precision="bf16", deterministic=False),
    "bf16, channels first": Mode(precision="bf16", channels_last=False),
    "bf16, compiled": Mode(precision="bf16", compiled=True),
}
TINY = {
    "small ResNet": Subject(backbone="resnet_gn_tiny", size=32, batch=4),
    "small ResNet 3D": Subject(backbone="resnet_gn_tiny", size=16, batch=2, spatial_dims=3),
}
COMPILED = ("ViT-B/16", "ResNet-50", "small ResNet")
CHANNELS_FIRST = ("ResNet-50", "small ResNet")


@functools.cache
def _initial_network(subject: Subject) -> EmbeddingNet:
    size = {"image_size": subject.size, "spatial_dims": subject.spatial_dims}
    return build_model(subject.backbone, embedding_dim=EMBEDDING, seed=SEED, **size)


def models(setup: Setup) -> Figures:
    """Measure each backbone in each mode, ours and bare."""
    figures: Figures = {"rows": []}
    subjects = TINY if setup.tiny else SUBJECTS
    for label, mode in MODES.items():  # the most telling mode of all backbones comes first
        for name, subject in subjects.items():
            if not _is_measured(name, mode, setup):
                continue
            for loop in ("ours", "bare") if mode.has_bare_loop else ("ours",):
                row = {"backbone": name, "mode": label, "loop": loop, "batch": subject.batch}
                figures["rows"].append(row | _measure(loop, subject, mode, setup))
                setup.save(figures)
    best = max(figures["rows"], key=lambda row: row.get("share_of_peak") or 0)
    return figures | {"best share of peak": best.get("share_of_peak") or "unknown"}


def _is_measured(name: str, mode: Mode, setup: Setup) -> bool:
    if mode.compiled:
        return name in COMPILED and setup.device != "cpu"
    return mode.channels_last or name in CHANNELS_FIRST


def loss(setup: Setup) -> Figures:
    """Time the loss at many classes: block sizes, stored and recomputed cosines, and pytorch-metric-learning."""
    batch, dim, classes = (32, 16, 1000) if setup.tiny else (1024, 512, 1_000_000)
    blocks = (300, 1000) if setup.tiny else (8192, 65_536, 1_000_000)
    problem = Problem(loss="cosface", batch=batch, dim=dim, classes=classes, device=setup.device)
    ways = {f"stream, block {block}": functools.partial(ours, problem, "stream", block=block) for block in blocks}
    ways = {
        "store": functools.partial(ours, problem, "store"),
        "stream": functools.partial(ours, problem, "stream"),
    } | ways
    if is_installed("pytorch-metric-learning"):
        ways["pytorch-metric-learning"] = functools.partial(metric_learning, problem)
    figures: Figures = {"classes": classes, "rows": []}
    for name, build in ways.items():
        figures["rows"].append({"loss": name} | _loss_row(build, setup))
        setup.save(figures)
    return figures | {row["loss"]: f"{row['ms']} ms" for row in figures["rows"] if "ms" in row}


def _loss_row(build: Callable[[], Way], setup: Setup) -> Figures:
    try:
        way = build()

        def step() -> None:
            way.clear()
            way.step()

        seconds, mib = _timed(step, setup, steps=5)
    except torch.OutOfMemoryError:
        return {"reason": "out of memory"}
    return {"ms": round(1e3 * seconds, 2), "peak_mib": mib}


def step(setup: Setup) -> Figures:
    """Compare our step on a small network, where its fixed cost shows, with a bare loop."""
    steps = 5 if setup.tiny else 100
    rows = {loop: _measure(loop, TINY["small ResNet"], Mode(), setup, steps) for loop in ("ours", "bare")}
    return {f"{loop}, ms": row["ms"] for loop, row in rows.items()}


def stall(setup: Setup) -> Figures:
    """Time how long a background save holds the training, beside a save in the foreground."""
    count = 100_000 if setup.tiny else 100_000_000
    tensors = {f"weight {number}": torch.randn(count // 100, device=setup.device) for number in range(100)}
    seconds: dict[str, float] = {}
    for background in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            _, saver = open_saver(Path(folder), torch.device(setup.device), background=background)
            times = []
            for number in range(1, 4):
                _synchronize(setup)
                began = time.perf_counter()
                saver.save_async(training_state({"model": tensors}, number))
                times.append(time.perf_counter() - began)
                saver.wait()
        seconds["background" if background else "foreground"] = round(statistics.median(times[1:]), 3)
    return {f"{way}, s": value for way, value in seconds.items()} | {"gib": round(count * 4 / 2**30, 2)}


def _step_flops(subject: Subject) -> int:
    """Return the operations of a training step per image."""
    network, _ = meta_backbone(subject.backbone, subject.spec())
    image = torch.zeros(1, 1, *[subject.size] * subject.spatial_dims, device="meta")
    return BACKWARD_TOO * forward_flops(network, image)


def _measure(loop: str, subject: Subject, mode: Mode, setup: Setup, steps: int = 10) -> Figures:
    """Return images/s, milliseconds, peak memory and share of the peak; or why there are none."""
    # The bare loop is what a user would write, with the kernels that PyTorch chooses.
    deterministic = mode.deterministic and loop == "ours"
    configure_kernels(torch.device(setup.device), tf32=mode.tf32, deterministic=deterministic)
    try:
        run = {"ours": _ours, "bare": _bare}[loop](subject, mode, setup)
        seconds, mib = _timed(run, setup, steps=2 if setup.tiny else steps)
    except torch.OutOfMemoryError:
        return {"reason": "out of memory"}
    flops = _step_flops(subject)
    achieved = flops * subject.batch / seconds
    peak = _peak(setup, mode)
    return {
        "images_per_second": round(subject.batch / seconds, 1),
        "ms": round(1e3 * seconds, 2),
        "peak_mib": mib,
        "tflops": round(achieved / 1e12, 3),
        "share_of_peak": None if peak is None else round(achieved / peak, 3),
    }


def _ours(subject: Subject, mode: Mode, setup: Setup) -> Callable[[], object]:
    net = subject.network()
    net.spec = subject.spec(channels_last=mode.channels_last)
    learner = build_learner(_recipe(subject, mode), net, CLASSES, SoloComm(torch.device(setup.device)), 10**6)
    batch = _batch(subject, setup, net.spec.memory_format)
    numbers = iter(range(1, 10**6))
    return lambda: learner.step(next(numbers), batch)


def _bare(subject: Subject, mode: Mode, setup: Setup) -> Callable[[], object]:
    comm, net = SoloComm(torch.device(setup.device)), subject.network()
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
