"""Replace BatchNorm by GroupNorm or SyncBatchNorm, whose results do not depend on how a batch is split."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from hsadml_dist.errors import ConfigError, Fault

BatchNormMode = Literal["keep", "group", "sync"]

GROUP_CHANNELS = 16
"""Wu and He, ECCV 2018, Table 3: 16 channels per group are as good as any number."""


class _WithActivation(nn.Module):
    """A norm followed by the dropout and activation inside the batch norms of timm, under the same names."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


class _GroupNormAct(_WithActivation, nn.GroupNorm):
    pass


class _SyncBatchNormAct(_WithActivation, nn.SyncBatchNorm):
    pass


def convert_batch_norms(network: nn.Module, kind: BatchNormMode) -> str | None:
    """Replace all BatchNorm layers; names and affine weights do not change.

    Args:
        network: Changed in place.
        kind: group: GroupNorm with :data:`GROUP_CHANNELS` channels per group, or the largest smaller divisor of the
            channels; running statistics are dropped. sync: SyncBatchNorm. keep: replace none.

    Returns:
        One line about the changes; None for ``keep``.
    """
    if kind == "keep":
        return None
    layers = batch_norms(network)
    if not layers:
        return f"model.batch_norm {kind}: the network has no BatchNorm layer; nothing was changed"
    replace = _grouped if kind == "group" else _synchronised
    replacements = {name: replace(layer) for name, layer in layers.items()}
    for name, new in replacements.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, new)
    count, layer = len(replacements), "layer" if len(replacements) == 1 else "layers"
    return f"{count} BatchNorm {layer} became {_description(kind, list(replacements.values()))}"


def check_sync_batch_norm(network: nn.Module, device: torch.device, ranks: int) -> None:
    """Reject SyncBatchNorm where PyTorch does not support it: on several ranks without GPUs.

    Raises:
        ConfigError: The network has SyncBatchNorm layers and the ranks have no GPUs.
    """
    if ranks > 1 and device.type == "cpu" and any(isinstance(layer, nn.SyncBatchNorm) for layer in network.modules()):
        problem = "'sync' requires GPUs, which these ranks do not have; use 'group' or 'keep'"
        raise ConfigError([Fault(where="recipe", key="model.batch_norm", problem=problem)])


def batch_norms(network: nn.Module) -> dict[str, Any]:
    """Return the layers with statistics over the batch of a rank, by name."""
    kind, synchronised = nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm
    return {n: m for n, m in network.named_modules() if isinstance(m, kind) and not isinstance(m, synchronised)}


def _grouped(old: Any) -> nn.Module:
    size = next(n for n in range(GROUP_CHANNELS, 0, -1) if old.num_features % n == 0)
    kind = _GroupNormAct if hasattr(old, "act") else nn.GroupNorm
    return _with_parameters(kind(old.num_features // size, old.num_features, eps=old.eps, affine=False), old)


def _synchronised(old: Any) -> nn.Module:
    kind = _SyncBatchNormAct if hasattr(old, "act") else nn.SyncBatchNorm
    new = kind(old.num_features, old.eps, old.momentum, affine=False, track_running_stats=old.track_running_stats)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(old, name))
    return _with_parameters(new, old)


def _with_parameters(new: Any, old: Any) -> nn.Module:
    """Copy affine weights, activation and mode of the replaced layer."""
    new.affine, new.weight, new.bias = old.affine, old.weight, old.bias
    if isinstance(new, _WithActivation):
        new.drop, new.act = getattr(old, "drop", nn.Identity()), old.act
    return new.train(old.training)


def _description(kind: BatchNormMode, layers: list[Any]) -> str:
    if kind == "sync":
        return "SyncBatchNorm: statistics of the global batch"
    odd = [size for layer in layers if (size := layer.num_channels // layer.num_groups) != GROUP_CHANNELS]
    others = " or ".join(map(str, sorted(set(odd), reverse=True)))
    exception = f", {len(odd)} of them of {others}" if odd else ""
    return f"GroupNorm, groups of {GROUP_CHANNELS} channels{exception}; without running statistics"
