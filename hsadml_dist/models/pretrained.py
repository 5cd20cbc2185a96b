"""Weights from elsewhere put into a network: those of a whole one, or of a backbone as its makers publish it."""

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
    """What became of the tensors of a file.

    Attributes:
        taken: Number of tensors put into the network.
        dropped: What was not needed: the classifier, and running statistics that GroupNorm has no place for.
        adapted: A line for each tensor that was changed to fit.
        kept: What the file does not hold and stays as it was drawn.
    """

    taken: int
    dropped: tuple[str, ...]
    adapted: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.taken} tensors taken"]
        parts += [f"dropped {_some(self.dropped)}"] if self.dropped else []
        parts += self.adapted
        parts += [f"{', '.join(self.kept)} as drawn from the seed"] if self.kept else []
        return "; ".join(parts)


def load_pretrained(network: EmbeddingNet, tensors: Tensors, source: str = "the file") -> PretrainedReport:
    """Put a file's tensors into a network.

    The file holds a whole network of this package (``backbone.`` and ``neck.``), or a backbone alone, with or without
    the prefix ``backbone.``. A classifier is dropped. A first convolution for colours is summed over its three
    channels, so that a grey image gives what three equal channels would. Positions of another grid are interpolated,
    in timm's nets by timm's own rules.

    Args:
        network: Gets the weights; nothing is changed where an error is raised.
        tensors: By name.
        source: What the error calls them.

    Raises:
        ConfigError: Tensors are missing, not known, or of another shape.
    """
    given = _with_prefix(tensors)
    target = {n: t for n, t in network.state_dict().items() if n.startswith(BACKBONE) or f"{NECK}weight" in given}
    dropped = [name for name in given if name not in target and (_is_head(name) or _is_statistic(name, network))]
    fitted, adapted = _fitted({n: t for n, t in given.items() if n not in dropped}, target, network.backbone)
    _check(fitted, target, source)
    with torch.no_grad():
        for name, tensor in fitted.items():
            target[name].copy_(tensor)
    kept = tuple(name for name in network.state_dict() if name not in fitted and not name.endswith(STATISTICS))
    return PretrainedReport(taken=len(fitted), dropped=tuple(dropped), adapted=tuple(adapted), kept=kept)


def _with_prefix(tensors: Tensors) -> dict[str, torch.Tensor]:
    if any(name.startswith((BACKBONE, NECK)) for name in tensors):
        return dict(tensors)
    return {f"{BACKBONE}{name}": tensor for name, tensor in tensors.items()}


def _is_head(name: str) -> bool:
    return name.startswith(tuple(f"{BACKBONE}{head}." for head in HEADS))


def _is_statistic(name: str, network: nn.Module) -> bool:
    """Whether a tensor is a running statistic of a layer that became a GroupNorm."""
    layer, _, leaf = name.rpartition(".")
    return leaf in STATISTICS and isinstance(dict(network.named_modules()).get(layer), nn.GroupNorm)


def _fitted(given: Tensors, target: Tensors, backbone: nn.Module) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors in the network's shapes as far as there is a way, and a line on each that changed."""
    fitted, lines = dict(given), []
    for name, tensor in given.items():
        if name in target and _is_colour(tensor, target[name]):
            fitted[name] = tensor.sum(dim=1, keepdim=True)
            lines.append(f"{name} summed over its {RGB} colour channels")
    fitted = _filtered_by_timm(fitted, backbone)
    for name, tensor in fitted.items():
        wanted = target.get(name)
        if wanted is not None and wanted.shape != tensor.shape and name.removeprefix(BACKBONE) in POSITIONS:
            fitted[name] = _interpolated(tensor, wanted, backbone)
    for name in fitted.keys() & given.keys():
        if fitted[name].shape != given[name].shape and not _is_colour(given[name], fitted[name]):
            lines.append(f"{name} interpolated from {tuple(given[name].shape)} to {tuple(fitted[name].shape)}")
    return fitted, sorted(lines)


def _is_colour(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    same = tensor.ndim == wanted.ndim >= 4 and tensor.shape[0] == wanted.shape[0]  # convolutions
    return same and (tensor.shape[1], wanted.shape[1]) == (RGB, 1)


def _filtered_by_timm(tensors: dict[str, torch.Tensor], backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors as timm's own loading of this net would have them: positions, patches and old names."""
    module = type(backbone).__module__
    if not module.startswith("timm."):
        return tensors
    rule: Callable[..., dict[str, torch.Tensor]] | None = getattr(sys.modules[module], "checkpoint_filter_fn", None)
    if rule is None:
        return tensors
    inner = {n.removeprefix(BACKBONE): t for n, t in tensors.items() if n.startswith(BACKBONE)}
    others = {n: t for n, t in tensors.items() if not n.startswith(BACKBONE)}
    return {f"{BACKBONE}{n}": t for n, t in rule(inner, backbone).items()} | others


def _interpolated(tensor: torch.Tensor, wanted: torch.Tensor, backbone: nn.Module) -> torch.Tensor:
    """Return positions (1, T, F) resampled to those of another square or cubic grid; as given where neither is one."""
    dims = next(layer.weight.ndim - 2 for layer in backbone.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d))
    sides = [round(math.pow(t.shape[1], 1 / dims)) for t in (tensor, wanted)]
    grids = [side**dims for side in sides]
    if grids != [tensor.shape[1], wanted.shape[1]] or tensor.shape[2] != wanted.shape[2]:
        return tensor
    grid = tensor.float().transpose(1, 2).reshape(1, -1, *[sides[0]] * dims)
    mode = "bicubic" if dims == 2 else "trilinear"
    new = functional.interpolate(grid, [sides[1]] * dims, mode=mode, antialias=dims == 2)
    return new.flatten(2).transpose(1, 2)


def _check(fitted: Tensors, target: Tensors, source: str) -> None:
    problems = []
    missing = [name for name in target if name not in fitted and not name.endswith("num_batches_tracked")]
    strange = [name for name in fitted if name not in target]
    wrong = [
        f"{n} {tuple(t.shape)} for {tuple(target[n].shape)}"
        for n, t in fitted.items()
        if n in target and t.shape != target[n].shape
    ]
    for text, names in (("missing", missing), ("not known", strange), ("of another shape", wrong)):
        if names:
            problems.append(f"{len(names)} {text} ({_some(names)})")
    if problems:
        problem = f"{source} does not fit the network: {'; '.join(problems)}"
        raise ConfigError([Fault(where="recipe", key="model.init_from", problem=problem)])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
