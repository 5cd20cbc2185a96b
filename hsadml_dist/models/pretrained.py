"""Load pretrained weights: those of a complete network, or of a published backbone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.models.network import EmbeddingNet

BACKBONE, NECK = "backbone.", "neck."
HEADS = ("head", "head_dist", "fc", "classifier", "classifier_dist", "last_linear", "_fc", "class_layers.out")
POSITIONS = ("positions", "patch_embedding.position_embeddings")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
RGB = 3
SHOWN = 3

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class PretrainedReport:
    """How the tensors of a file were used.

    Attributes:
        loaded: Number of tensors loaded into the network.
        dropped: Unused tensors: the classifier, and running statistics of layers that became GroupNorm.
        adapted: One line per tensor that was converted.
        missing: Tensors of the network that are not in the file and keep their initial values.
    """

    loaded: int
    dropped: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        parts += [f"dropped {_some(self.dropped)}"] if self.dropped else []
        parts += self.adapted
        parts += [f"{', '.join(self.missing)} initialised from the seed"] if self.missing else []
        return "; ".join(parts)


def load_pretrained(network: EmbeddingNet, tensors: Tensors, source: str = "the file") -> PretrainedReport:
    """Load the tensors of a file into a network.

    The file contains a complete network of this package (``backbone.`` and ``neck.``), or only a backbone, with or
    without the prefix ``backbone.``. A classifier is dropped. The first convolution of a colour network is summed over
    its three input channels, so that a grey image gives the same result as three equal channels. Position embeddings
    of another grid are interpolated, in timm networks by the rules of timm.

    Args:
        network: The network; not changed if an error is raised.
        tensors: By name.
        source: Name of the file for error messages.

    Raises:
        ConfigError: Tensors are missing, unknown, or have another shape.
    """
    prefix = "" if any(name.startswith((BACKBONE, NECK)) for name in tensors) else BACKBONE
    given = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    target = {n: t for n, t in network.state_dict().items() if n.startswith(BACKBONE) or f"{NECK}weight" in given}
    heads = tuple(f"{BACKBONE}{head}." for head in HEADS)
    dropped = [n for n in given if n not in target and (n.startswith(heads) or _is_statistic(n, network))]
    converted, adapted = _convert({n: t for n, t in given.items() if n not in dropped}, target, network.backbone)
    _check(converted, target, source)
    with torch.no_grad():
        for name, tensor in converted.items():
            target[name].copy_(tensor)
    missing = tuple(name for name in network.state_dict() if name not in converted and not name.endswith(STATISTICS))
    return PretrainedReport(loaded=len(converted), dropped=tuple(dropped), adapted=tuple(adapted), missing=missing)


def _is_statistic(name: str, network: nn.Module) -> bool:
    """Return whether a tensor is a running statistic of a layer that became a GroupNorm."""
    layer, _, leaf = name.rpartition(".")
    return leaf in STATISTICS and isinstance(dict(network.named_modules()).get(layer), nn.GroupNorm)


def _convert(given: Tensors, target: Tensors, backbone: nn.Module) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors, converted to the shapes of the network where possible, and one line per conversion."""
    fitted, lines = dict(given), []
    for name, tensor in given.items():
        if name in target and _is_rgb_convolution(tensor, target[name]):
            fitted[name] = tensor.sum(dim=1, keepdim=True)
            lines.append(f"{name} summed over its {RGB} colour channels")
    fitted = _convert_by_timm(fitted, backbone)
    for name, tensor in fitted.items():
        wanted = target.get(name)
        if wanted is not None and wanted.shape != tensor.shape and name.removeprefix(BACKBONE) in POSITIONS:
            fitted[name] = _interpolate(tensor, wanted, backbone)
    for name in fitted.keys() & given.keys():
        if fitted[name].shape != given[name].shape and not _is_rgb_convolution(given[name], fitted[name]):
            lines.append(f"{name} interpolated from {tuple(given[name].shape)} to {tuple(fitted[name].shape)}")
    return fitted, sorted(lines)


def _is_rgb_convolution(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    comparable = tensor.ndim == wanted.ndim >= 4 and tensor.shape[0] == wanted.shape[0]
    return comparable and (tensor.shape[1], wanted.shape[1]) == (RGB, 1)


def _convert_by_timm(tensors: dict[str, torch.Tensor], backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Apply the conversion that timm applies when it loads this network: positions, patches and old names."""
    module = type(backbone).__module__
    if not module.startswith("timm."):
        return tensors
    convert: Callable[..., dict[str, torch.Tensor]] | None = getattr(sys.modules[module], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    inner = {n.removeprefix(BACKBONE): t for n, t in tensors.items() if n.startswith(BACKBONE)}
    others = {n: t for n, t in tensors.items() if not n.startswith(BACKBONE)}
    return {f"{BACKBONE}{n}": t for n, t in convert(inner, backbone).items()} | others


def _interpolate(tensor: torch.Tensor, wanted: torch.Tensor, backbone: nn.Module) -> torch.Tensor:
    """Return positions (1, T, F) resampled to another square or cubic grid, or unchanged if a grid is neither."""
    dims = next(layer.weight.ndim - 2 for layer in backbone.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d))
    sides = [round(math.pow(t.shape[1], 1 / dims)) for t in (tensor, wanted)]
    grids = [side**dims for side in sides]
    if grids != [tensor.shape[1], wanted.shape[1]] or tensor.shape[2] != wanted.shape[2]:
        return tensor
    grid = tensor.float().transpose(1, 2).reshape(1, -1, *[sides[0]] * dims)
    mode = "bicubic" if dims == 2 else "trilinear"
    new = functional.interpolate(grid, [sides[1]] * dims, mode=mode, antialias=dims == 2)
    return new.flatten(2).transpose(1, 2)


def _check(converted: Tensors, target: Tensors, source: str) -> None:
    missing = [name for name in target if name not in converted and not name.endswith("num_batches_tracked")]
    unknown = [name for name in converted if name not in target]
    mismatched = [
        f"{n} {tuple(t.shape)} for {tuple(target[n].shape)}"
        for n, t in converted.items()
        if n in target and t.shape != target[n].shape
    ]
    found = {"missing": missing, "unknown": unknown, "of another shape": mismatched}
    problems = [f"{len(names)} {text} ({_some(names)})" for text, names in found.items() if names]
    if problems:
        problem = f"{source} does not match the network: {'; '.join(problems)}"
        raise ConfigError([Fault(where="recipe", key="model.init_from", problem=problem)])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
