"""Export a run's network to a file for other programs, after comparing its outputs with the network's.

Shapes: B images, S pixels a side, D components, C classes.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hsadml_dist import atomic
from hsadml_dist.atomic import atomic_path
from hsadml_dist.config.recipe import LossConfig
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.shard_cache import ShardLocation
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.evaluation.model_loading import Inference, open_training_shards
from hsadml_dist.model_factory import loss_scale

Format = Literal["torch", "onnx"]
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-5
"""Largest allowed difference: absolute, but relative to the norm for an embedding longer than 1, because fp32 holds no
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
    """The exported network: ``(B, 1, S, S) -> embedding (B, D), unit embedding (B, D), cosine (B, C)``."""

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
    """An exported file that was compared with the network on random images and on slices of the run's shards.

    Attributes:
        path: The file; its description has the same name with ``.json`` appended.
        difference: Largest difference from the network over all outputs and images, measured as for :data:`TOLERANCE`.
    """

    path: Path
    format: Format
    difference: float
    random_images: int
    real_slices: int


def check_export_packages(chosen: Format) -> None:
    """Check that the packages of a format are installed.

    Raises:
        UsageError: A package is missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None] if chosen == "onnx" else []
    if missing:
        raise UsageError(
            f"--format onnx: needs {', '.join(missing)}; run pip install 'hsadml-dist[export]', "
            "or use --format torch, which needs no further package"
        )


def export_run(inference: Inference, out: Path, chosen: Format, shards: str | Path | None) -> ExportedModel:
    """Write a run's network to ``out`` and its description to the sidecar, if its outputs equal the network's.

    Args:
        inference: The run.
        out: The file; an existing one is replaced only if the comparison succeeds.
        chosen: The format.
        shards: New location of the run's shards, whose slices are compared; None means that of the recipe.

    Raises:
        DataError: An output differs by more than :data:`TOLERANCE`, the file cannot be written, or the shards cannot
            be read or are not those of the training.
    """
    location, index = open_training_shards(inference, shards)
    slices = _stored_slices(location, index, inference.recipe.data.image_size)
    try:
        with atomic_path(out) as temporary:
            exported = _write_and_compare(inference, out, temporary, chosen, slices)
            text = description(inference, exported, index, hashlib.sha256(temporary.read_bytes()).hexdigest())
        atomic.write_text(sidecar(out), text)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error
    return exported


def _write_and_compare(
    inference: Inference, out: Path, temporary: Path, chosen: Format, slices: torch.Tensor
) -> ExportedModel:
    size = inference.recipe.data.image_size
    random = torch.randn(5, 1, size, size, generator=torch.Generator().manual_seed(RANDOM_SEED))
    {"torch": write_torch, "onnx": write_onnx}[chosen](_net(inference), size, temporary)
    run = {"torch": torch_runner, "onnx": onnx_runner}[chosen](temporary)
    # Batches of different sizes: a graph with a fixed batch size would fail or differ.
    difference = max(_difference(inference, run, images) for images in (random[:1], random, slices))
    if not difference <= TOLERANCE:
        raise DataError(f"{out}: differs from the network by {difference:.1e}; allowed: {TOLERANCE:.0e}; not kept")
    return ExportedModel(
        path=out, format=chosen, difference=difference, random_images=len(random), real_slices=len(slices)
    )


def sidecar(out: Path) -> Path:
    """Return the path of the description of an exported file."""
    return out.with_name(out.name + ".json")


def description(inference: Inference, exported: ExportedModel, index: ShardIndex, sha256: str) -> str:
    """Return the text of the sidecar: inputs, outputs, preprocessing and origin of the weights."""
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
        "probability": f"{probability_formula(recipe.loss, inference.weights.bias)}, not calibrated",
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


def probability_formula(loss: LossConfig, bias: float | None) -> str:
    """Return how to compute the probabilities of the classes from the output ``cosine``."""
    scale = loss_scale(loss)
    factor = "length of embedding" if scale is None else f"{scale:g}"
    if loss.name != "sphereface2":
        return f"softmax({factor} * cosine)"
    logit = f"{factor} * (2 * ((cosine + 1) / 2) ** {loss.sharpness:g} - 1) + {bias or 0.0!r}"
    return f"sigmoid({logit}) divided by its sum over the classes"


def _net(inference: Inference) -> ExportedNet:
    """Return an fp32 copy on the CPU in contiguous memory format, as other programs expect."""
    net = ExportedNet(copy.deepcopy(inference.weights.model), inference.weights.centre_CD)
    net = net.to("cpu", torch.float32).eval().requires_grad_(False)
    return net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's stubs


def write_torch(net: ExportedNet, size: int, path: Path) -> None:
    """Write a network as an exported program of torch."""
    with path.open("wb") as file:
        torch.export.save(_program(net, size), file)


def write_onnx(net: ExportedNet, size: int, path: Path) -> None:
    """Write a network as an ONNX file."""
    with _quiet():
        program = torch.onnx.export(_program(net, size), input_names=[INPUT], output_names=list(OUTPUTS), verbose=False)
    if program is None:
        raise DataError(f"{path}: torch's ONNX exporter returned no program")
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings on torchvision, which is not needed, and on deprecations in torch itself."""
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
    # Two images: with one, the exporter would treat the batch size as a constant.
    return torch.export.export(net, (torch.zeros(2, 1, size, size),), dynamic_shapes={"image": {0: batch}})


def torch_runner(path: Path) -> Runner:
    """Load an exported program."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


def onnx_runner(path: Path) -> Runner:
    """Load an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(image: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.from_numpy(np.asarray(value)) for value in session.run(list(OUTPUTS), {INPUT: image.numpy()})]

    return run


@torch.no_grad()
def _difference(inference: Inference, run: Runner, images: torch.Tensor) -> float:
    """Return the largest difference between the outputs of the file and of the network; infinity for NaN."""
    model, centre_CD = inference.weights.model.eval(), inference.weights.centre_CD
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    expected = ExportedNet(model, centre_CD)(images.to(inference.device, dtype))
    length_B1 = expected[0].cpu().double().norm(dim=1, keepdim=True).clamp(min=1)
    gaps = [
        (found.double() - wanted.cpu().double()) / (length_B1 if name == OUTPUTS[0] else 1)
        for name, found, wanted in zip(OUTPUTS, run(images), expected, strict=True)
    ]
    return float(torch.cat([gap.abs().flatten() for gap in gaps]).nan_to_num(nan=float("inf")).max())


def _stored_slices(location: ShardLocation, index: ShardIndex, size: int) -> torch.Tensor:
    reader, prepare = ShardReader(location, index), Preprocessing(size)
    positions = np.linspace(0, len(index) - 1, min(len(index), REAL_SLICES)).round().astype(int).tolist()
    return torch.stack([prepare(reader.image(position)) for position in positions]).float()
