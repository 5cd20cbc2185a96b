"""BatchNorm made independent of how a batch is cut: by groups of channels, or by statistics over all ranks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from hsadml_dist.errors import ConfigError, Fault

BatchNormMode = Literal["keep", "group", "sync"]

GROUP_CHANNELS = 16
"""Wu and He, ECCV 2018, Table 3: 16 channels a group are as good as any."""


class _Acting(nn.Module):
    """What timm's batch norms do after normalising, under the same names."""

    drop: nn.Module
    act: nn.Module

    def take(self, old: Any) -> None:
        self.drop, self.act = getattr(old, "drop", nn.Identity()), old.act


class _ActingGroupNorm(nn.GroupNorm, _Acting):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


class _ActingSyncBatchNorm(nn.SyncBatchNorm, _Acting):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


def convert_batch_norms(network: nn.Module, kind: BatchNormMode) -> str | None:
    """Replace all BatchNorm layers; names and affine weights stay.

    Args:
        network: Changed in place.
        kind: group: GroupNorm with :data:`GROUP_CHANNELS` channels a group, or the largest divisor below; running
            statistics have no place there and are dropped. sync: statistics of the global batch. keep: none.

    Returns:
        One line on what was done; None for ``keep``.
    """
    if kind == "keep":
        return None
    layers = batch_norms(network)
    if not layers:
        return f"model.batch_norm {kind}: the network has no BatchNorm layer, nothing changes"
    news = {name: _grouped(layer) if kind == "group" else _synchronised(layer) for name, layer in layers.items()}
    for name, new in news.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, new)
    return f"{len(news)} BatchNorm {_plural('layer', len(news))} became {_described(kind, list(news.values()))}"


def check_sync_batch_norm(network: nn.Module, device: torch.device, ranks: int) -> None:
    """Refuse to train synchronised BatchNorm where PyTorch cannot: among several ranks without GPUs.

    Raises:
        ConfigError: It cannot.
    """
    if ranks > 1 and device.type == "cpu" and any(isinstance(layer, nn.SyncBatchNorm) for layer in network.modules()):
        problem = "'sync' works on GPUs only, and these ranks have none; use 'group', or 'keep'"
        raise ConfigError([Fault(where="recipe", key="model.batch_norm", problem=problem)])


def batch_norms(network: nn.Module) -> dict[str, Any]:
    """Return the layers with statistics over a rank's batch by name."""
    kind, synchronised = nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm
    return {n: m for n, m in network.named_modules() if isinstance(m, kind) and not isinstance(m, synchronised)}


def _grouped(old: Any) -> nn.Module:
    size = next(n for n in range(GROUP_CHANNELS, 0, -1) if old.num_features % n == 0)
    kind = _ActingGroupNorm if hasattr(old, "act") else nn.GroupNorm
    return _dressed(kind(old.num_features // size, old.num_features, eps=old.eps, affine=False), old)


def _synchronised(old: Any) -> nn.Module:
    kind = _ActingSyncBatchNorm if hasattr(old, "act") else nn.SyncBatchNorm
    new = kind(old.num_features, old.eps, old.momentum, affine=False, track_running_stats=old.track_running_stats)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(old, name))
    return _dressed(new, old)


def _dressed(new: Any, old: Any) -> nn.Module:
    """Give a layer the old one's affine weights and what follows them."""
    new.affine, new.weight, new.bias = old.affine, old.weight, old.bias
    if isinstance(new, _Acting):
        new.take(old)
    return new.train(old.training)


def _described(kind: BatchNormMode, layers: list[Any]) -> str:
    if kind == "sync":
        return "SyncBatchNorm: their statistics are those of the global batch"
    sizes = [layer.num_channels // layer.num_groups for layer in layers]
    others = sorted({size for size in sizes if size != GROUP_CHANNELS}, reverse=True)
    odd = len([size for size in sizes if size != GROUP_CHANNELS])
    exception = f", {odd} of them of {' or '.join(map(str, others))}" if odd else ""
    return f"GroupNorm, groups of {GROUP_CHANNELS} channels{exception}; they keep no running statistics"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
