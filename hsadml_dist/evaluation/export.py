"""A run's network as a file for other programs, compared with the network before it is kept.

Shapes: B images, S pixels a side, D components, C classes.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hsadml_dist.config import Recipe
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.shard_cache import ShardLocation
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.evaluation.model_loading import Inference, open_training_shards
from hsadml_dist.model_factory import loss_scale
from hsadml_dist.run.folder import replace_text

Format = Literal["torch", "onnx"]
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-5
"""Largest difference allowed: absolute; of an embedding longer than 1, as a share of its length, since fp32 holds no
more digits of it."""
INPUT = "image"
OUTPUTS = ("embedding", "unit_embedding", "cosine")
REAL_SLICES = 16
RANDOM_SEED = 0
PREPROCESSING = (
    "grey values: 8-bit v becomes v * 257, others are stretched from their minimum and maximum to 0 ... 65535",
    "padded to a square with the minimum, centred; resampled by an antialiased Lanczos filter to shard_size; rounded",
    "divided by 65535; resized to image_size by area averaging",
    "mean of the image subtracted; divided by its (population) standard deviation",
)

Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Maps images (B, 1, S, S), fp32, to the outputs, each (B, ...)."""


class ExportedNet(nn.Module):
    """What a file holds: ``(B, 1, S, S) -> embedding (B, D), unit embedding (B, D), cosine (B, C)``."""

    centre_CD: torch.Tensor

    def __init__(self, model: nn.Module, centre_CD: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("centre_CD", nn.functional.normalize(centre_CD.detach(), dim=1))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the three outputs of prepared images."""
        emb_BD = self.model(image)
        unit_BD = nn.functional.normalize(emb_BD, dim=1)
        return emb_BD, unit_BD, unit_BD @ self.centre_CD.T


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A file that was checked.

    Attributes:
        path: The file; its description lies beside it, with ``.json`` added to the name.
        format: ``torch`` or ``onnx``.
        difference: Largest difference from the network over all outputs and images, as :data:`TOLERANCE` counts.
        random_images: How many random images were compared.
        real_slices: How many slices of the run's shards were compared.
    """

    path: Path
    format: Format
    difference: float
    random_images: int
    real_slices: int


def check_export_packages(chosen: Format) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        UsageError: They are not.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None] if chosen == "onnx" else []
    if missing:
        raise UsageError(
            f"--format onnx: not installed: {', '.join(missing)}; pip install 'hsadml-dist[export]', "
            "or choose --format torch, which needs nothing more"
        )


def export_run(inference: Inference, out: Path, chosen: Format, shards: str | Path | None) -> ExportedModel:
    """Write a run's network to ``out`` and its description beside it, if its outputs are the network's.

    Args:
        inference: The run.
        out: The file; an older one is replaced, but only by one that has passed.
        chosen: The format.
        shards: Where the run's shards lie, if not where they were in training: slices of them are compared.

    Raises:
        DataError: An output differs by more than :data:`TOLERANCE`, the file cannot be written, or the shards cannot
            be read or are not the run's.
    """
    size = inference.recipe.data.image_size
    folder, index = open_training_shards(inference, shards)
    real = _real_images(folder, index, size)
    random = torch.randn(5, 1, size, size, generator=torch.Generator().manual_seed(RANDOM_SEED))
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        {"torch": _write_torch, "onnx": _write_onnx}[chosen](_net(inference), size, temporary)
        run = {"torch": _torch_runner, "onnx": _onnx_runner}[chosen](temporary)
        # One image alone, several, and all: a graph that froze its number of images would fail or differ.
        difference = max(_difference(inference, run, images) for images in (random[:1], random, real))
        if not difference <= TOLERANCE:
            raise DataError(f"{out}: differs from the network by {difference:.1e}, allowed: {TOLERANCE:.0e}; not kept")
        exported = ExportedModel(
            path=out, format=chosen, difference=difference, random_images=len(random), real_slices=len(real)
        )
        text = description(inference, exported, index, hashlib.sha256(temporary.read_bytes()).hexdigest())
        os.replace(temporary, out)
        replace_text(sidecar(out), text)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return exported


def sidecar(out: Path) -> Path:
    """Return where the description of an exported file lies."""
    return out.with_name(out.name + ".json")


def description(inference: Inference, exported: ExportedModel, index: ShardIndex, sha256: str) -> str:
    """Return the text of the sidecar: what goes in, what comes out, and whose weights they are."""
    recipe, checkpoint = inference.recipe, inference.weights.checkpoint
    size, classes = recipe.data.image_size, len(index.classes)
    values: dict[str, Any] = {
        "format": exported.format,
        "sha256": sha256,
        "model": recipe.model.name,
        "loss": recipe.loss.name,
        "classes": list(index.classes),
        "image_size": size,
        "shard_size": index.size,
        "preprocessing": list(PREPROCESSING),
        "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", 1, size, size]},
        "outputs": [
            {"name": "embedding", "shape": ["batch", recipe.model.embedding_dim], "meaning": "as the network gives it"},
            {"name": "unit_embedding", "shape": ["batch", recipe.model.embedding_dim], "meaning": "of length 1"},
            {"name": "cosine", "shape": ["batch", classes], "meaning": "with each class centre, in classes' order"},
        ],
        "probability": f"softmax({_scale_words(recipe)} * cosine), not calibrated",
        "checkpoint": checkpoint.name,
        "data_digest": inference.trained_on,
        "checked": {
            "random_images": exported.random_images,
            "real_slices": exported.real_slices,
            "max_difference": exported.difference,
            "tolerance": TOLERANCE,
        },
        "note": "Research use only; not a medical device.",
    }
    return json.dumps(values, indent=2) + "\n"


def _scale_words(recipe: Recipe) -> str:
    scale = loss_scale(recipe.loss)
    return "length of embedding" if scale is None else f"{scale:g}"


def _net(inference: Inference) -> ExportedNet:
    """Return an fp32 copy on the CPU, in plain memory order: what other programs expect."""
    net = ExportedNet(copy.deepcopy(inference.weights.model), inference.weights.centre_CD)
    net = net.to("cpu", torch.float32).eval().requires_grad_(False)
    return net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's stubs


def _write_torch(net: ExportedNet, size: int, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(_program(net, size), file)


def _write_onnx(net: ExportedNet, size: int, path: Path) -> None:
    with _quiet():
        program = torch.onnx.export(_program(net, size), input_names=[INPUT], output_names=list(OUTPUTS), verbose=False)
    if program is None:
        raise DataError(f"{path}: torch's ONNX exporter gave nothing")
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of torchvision, which is not needed, and of torch's own future."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _program(net: ExportedNet, size: int) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    # Two images: with one, the exporter would take the batch for a constant.
    return torch.export.export(net, (torch.zeros(2, 1, size, size),), dynamic_shapes={"image": {0: batch}})


def _torch_runner(path: Path) -> Runner:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(image: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.from_numpy(np.asarray(value)) for value in session.run(list(OUTPUTS), {INPUT: image.numpy()})]

    return run


@torch.no_grad()
def _difference(inference: Inference, run: Runner, images: torch.Tensor) -> float:
    """Return the largest difference between the file's outputs and the network's; infinity for NaN."""
    model, centre_CD = inference.weights.model.eval(), inference.weights.centre_CD
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    expected = ExportedNet(model, centre_CD)(images.to(inference.device, dtype))
    length_B1 = expected[0].cpu().double().norm(dim=1, keepdim=True).clamp(min=1)
    gaps = [
        (found.double() - wanted.cpu().double()) / (length_B1 if name == OUTPUTS[0] else 1)
        for name, found, wanted in zip(OUTPUTS, run(images), expected, strict=True)
    ]
    return float(torch.cat([gap.abs().flatten() for gap in gaps]).nan_to_num(nan=float("inf")).max())


def _real_images(folder: ShardLocation, index: ShardIndex, size: int) -> torch.Tensor:
    reader, prepare = ShardReader(folder, index), Preprocessing(size)
    places = np.linspace(0, len(index) - 1, min(len(index), REAL_SLICES)).round().astype(int).tolist()
    return torch.stack([prepare(reader.image(place)) for place in places]).float()
