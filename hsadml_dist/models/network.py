"""The embedding network: a backbone from the registry, dropout, a linear neck, and frozen parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hsadml_dist.errors import ConfigError, Fault, did_you_mean
from hsadml_dist.models.batch_norm import BatchNormMode, batch_norms, convert_batch_norms
from hsadml_dist.models.monai_backbones import CONVOLUTIONAL, TOKENS
from hsadml_dist.models.registry import TIMM_PREFIX, model_problems
from hsadml_dist.models.small_backbones import resnet_gn_small, resnet_gn_tiny, vit_small_patches
from hsadml_dist.models.timm_backbones import build_timm

BackboneBuilder = Callable[[int, int, int], tuple[nn.Module, int]]
"""Maps (in_channels, spatial_dims, image_size) to (module of ``(B, C, H, W[, D]) -> (B, F)``, F)."""

BACKBONES: dict[str, BackboneBuilder] = {
    "resnet_gn_small": resnet_gn_small,
    "resnet_gn_tiny": resnet_gn_tiny,
    "vit_small_patches": vit_small_patches,
    **CONVOLUTIONAL,
    **TOKENS,
}

Precision = Literal["fp32", "bf16", "fp64"]

WEIGHT_DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.float32,
    "fp64": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Shape of the images that a network takes.

    Attributes:
        image_size: Pixels per side.
        in_channels: Channels of an image.
        spatial_dims: 2 for images, 3 for volumes.
    """

    image_size: int = 112
    in_channels: int = 1
    spatial_dims: int = 2

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and weights: convolutions of images run faster with channels last."""
        return torch.channels_last if self.spatial_dims == 2 else torch.contiguous_format

    def zeros(self, device: torch.device, precision: Precision) -> torch.Tensor:
        """Return a batch of one black image."""
        shape = (1, self.in_channels, *[self.image_size] * self.spatial_dims)
        return torch.zeros(shape, device=device, dtype=WEIGHT_DTYPES[precision])


class EmbeddingNet(nn.Module):
    """Backbone, dropout, linear neck: ``(B, C, H, W[, D]) -> (B, embedding_dim)``, not normalised.

    Attributes:
        spec: Shape of the images.
        fixed: Names of layers that stay in evaluation mode: frozen batch norms.
        changes: One line per change of the published network, for the log of the run.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        embedding_dim: int,
        dropout: float = 0.0,
        spec: InputSpec = InputSpec(),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # Dropout of 0 is omitted, so that the network is recognised as independent of the number of ranks.
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.neck = nn.Linear(features, embedding_dim)
        self.spec = spec
        self.fixed: tuple[str, ...] = ()
        self.changes: tuple[str, ...] = ()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.neck(self.dropout(self.backbone(image)))

    def train(self, mode: bool = True) -> EmbeddingNet:
        """Set the mode of all layers except the fixed ones; see the base class."""
        super().train(mode)
        for name in self.fixed:
            self.get_submodule(name).eval()
        return self

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze parts: their weights get no gradient, and their BatchNorm layers keep their running statistics.

        Args:
            names: Submodules or single parameters, such as ``backbone.blocks.0`` or ``backbone.positions``.

        Raises:
            ConfigError: The network has no part of this name, or nothing would be left to train.
        """
        if not names:
            return
        faults = [Fault(where="recipe", key="model.freeze", problem=problem) for problem in _problems(self, names)]
        if faults:
            raise ConfigError(faults)
        frozen = [parameter for name, parameter in self.named_parameters() if _is_within(name, names)]
        for parameter in frozen:
            parameter.requires_grad_(False)
        kind = nn.modules.batchnorm._BatchNorm
        fixed = tuple(n for n, m in self.named_modules() if isinstance(m, kind) and _is_within(n, names))
        count, total = sum(p.numel() for p in frozen), sum(p.numel() for p in self.parameters())
        line = f"frozen: {', '.join(names)} ({len(frozen)} tensors, {count:,} of {total:,} weights)"
        if fixed:
            line += f"; {len(fixed)} BatchNorm layers in them keep their running statistics"
        self.fixed += fixed
        self.changes += (line,)
        self.train(self.training)


def build_model(
    name: str,
    *,
    embedding_dim: int,
    dropout: float = 0.0,
    image_size: int = 112,
    in_channels: int = 1,
    spatial_dims: int = 2,
    seed: int = 0,
    batch_norm: BatchNormMode = "keep",
    frozen: Sequence[str] = (),
) -> EmbeddingNet:
    """Return the named network with weights drawn from ``seed``, fp32, on the CPU.

    Args:
        name: A backbone of the registry, or ``timm/NAME``.
        embedding_dim: Components of an embedding.
        dropout: Probability of dropping a feature before the neck.
        image_size: Pixels per side.
        in_channels: Channels of an image.
        spatial_dims: 2 for images, 3 for volumes.
        seed: Seed of the weights.
        batch_norm: See :func:`~hsadml_dist.models.batch_norm.convert_batch_norms`.
        frozen: See :meth:`EmbeddingNet.freeze`.

    Raises:
        ConfigError: Unknown backbone or part, an image that the backbone does not accept, or timm is not installed.
    """
    spec = InputSpec(image_size=image_size, in_channels=in_channels, spatial_dims=spatial_dims)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, features = build_backbone(name, spec)
        network = EmbeddingNet(backbone, features, embedding_dim, dropout, spec)
    line = convert_batch_norms(network, batch_norm)
    network.changes += () if line is None else (line,)
    network.freeze(frozen)
    return network


def build_backbone(name: str, spec: InputSpec) -> tuple[nn.Module, int]:
    """Return a module ``(B, C, H, W[, D]) -> (B, F)`` and F; weights are drawn from torch's global generator.

    Raises:
        ConfigError: Unknown backbone, an image that it does not accept, or timm is not installed.
    """
    faults = [Fault(where="recipe", key=key, problem=text) for key, text in model_problems(name, spec.image_size)]
    if faults:
        raise ConfigError(faults)
    if name.startswith(TIMM_PREFIX):
        return build_timm(name.removeprefix(TIMM_PREFIX), spec.in_channels, spec.spatial_dims, spec.image_size)
    return BACKBONES[name](spec.in_channels, spec.spatial_dims, spec.image_size)


def prepare_model(network: EmbeddingNet, device: torch.device, precision: Precision) -> EmbeddingNet:
    """Move the network to its device, dtype and memory format, in place; return it."""
    network.to(device, WEIGHT_DTYPES[precision])
    network.to(memory_format=network.spec.memory_format)  # type: ignore[call-overload]  # missing in torch's stubs
    return network


def rank_dependent_layers(model: nn.Module) -> list[str]:
    """Return the names of layers whose output depends on how a batch is split over ranks: batch norms and dropouts."""
    fixed, norms = getattr(model, "fixed", ()), batch_norms(model)
    return [n for n, layer in model.named_modules() if n not in fixed and (n in norms or _is_random(layer))]


def _is_random(layer: Any) -> bool:
    """Return whether a layer draws random numbers: dropout, or the stochastic depth of MONAI and timm."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if type(layer).__name__ == "MBConvBlock":
        return bool(layer.id_skip and layer.stride == 1 and layer.drop_connect_rate)
    return type(layer).__name__ == "DropPath" and bool(layer.drop_prob)


def _problems(network: nn.Module, names: Sequence[str]) -> Iterator[str]:
    """Yield why parts cannot be frozen."""
    known = {n for n, _ in network.named_modules() if n} | {n for n, _ in network.named_parameters()}
    unknown = [name for name in names if name not in known]
    for name in unknown:
        yield f"the network has no {name!r}{did_you_mean(name, known) or _siblings(name, known)}"
    if not unknown and all(_is_within(name, names) for name, _ in network.named_parameters()):
        yield f"{', '.join(names)}: nothing would be left to train"


def _siblings(name: str, known: set[str]) -> str:
    """Return the parts of the longest known prefix of a name, or of the whole network."""
    parent = name.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    parts = sorted(k for k in known if k.startswith(prefix) and "." not in k.removeprefix(prefix))
    return f"; it has {', '.join(parts[:8])}" + (", ..." if len(parts) > 8 else "")


def _is_within(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)
