"""The embedding network: a backbone from the registry, dropout and a linear neck."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.models.batch_norm import BatchNormMode, batch_norms, convert_batch_norms
from hsadml_dist.models.freezing import freeze, frozen_line
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


class EmbeddingNet(nn.Module):
    """Backbone, dropout, linear neck: ``(B, C, H, W[, D]) -> (B, embedding_dim)``, not normalised.

    Attributes:
        fixed: Names of layers that stay in evaluation mode: frozen batch norms.
        changes: A line for each thing done to the published net, for the run's log.
    """

    def __init__(self, backbone: nn.Module, features: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        # A dropout of 0 is left out, so that the net is seen to be the same function on any number of ranks.
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.neck = nn.Linear(features, embedding_dim)
        self.fixed: tuple[str, ...] = ()
        self.changes: tuple[str, ...] = ()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, embedding_dim)."""
        return self.neck(self.dropout(self.backbone(image)))

    def train(self, mode: bool = True) -> EmbeddingNet:
        """Set the mode of all layers but the fixed ones; see the base class."""
        super().train(mode)
        for name in self.fixed:
            self.get_submodule(name).eval()
        return self

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze parts, and say so in ``changes``; see :func:`~hsadml_dist.models.freezing.freeze`.

        Raises:
            ConfigError: A name that the network does not have, or nothing would be left to train.
        """
        if names:
            self.fixed += freeze(self, names)
            self.changes += (frozen_line(self, names, self.fixed),)
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
        image_size: Pixels a side.
        in_channels: Channels of an image.
        spatial_dims: 2 or 3.
        seed: Of the weights.
        batch_norm: What becomes of BatchNorm, see :func:`~hsadml_dist.models.batch_norm.convert_batch_norms`.
        frozen: Parts that are not trained, see :func:`~hsadml_dist.models.freezing.freeze`.

    Raises:
        ConfigError: Unknown backbone or part, an image that the backbone cannot take, or timm is not there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, features = build_backbone(name, in_channels, spatial_dims, image_size)
        network = EmbeddingNet(backbone, features, embedding_dim, dropout)
    line = convert_batch_norms(network, batch_norm)
    network.changes += () if line is None else (line,)
    network.freeze(frozen)
    return network


def build_backbone(name: str, in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return a module ``(B, C, H, W[, D]) -> (B, F)`` and F; weights are drawn from the caller's generator.

    Raises:
        ConfigError: Unknown backbone, an image that it cannot take, or timm is not there.
    """
    faults = [Fault(where="recipe", key=key, problem=text) for key, text in model_problems(name, image_size)]
    if faults:
        raise ConfigError(faults)
    if name.startswith(TIMM_PREFIX):
        return build_timm(name.removeprefix(TIMM_PREFIX), in_channels, spatial_dims, image_size)
    return BACKBONES[name](in_channels, spatial_dims, image_size)


def rank_dependent_layers(model: nn.Module) -> list[str]:
    """Return the names of layers whose output depends on how a batch is cut among ranks: batch norms and dropouts."""
    fixed = getattr(model, "fixed", ())
    return [n for n, layer in model.named_modules() if n not in fixed and (_has_statistics(layer) or _draws(layer))]


def _has_statistics(layer: nn.Module) -> bool:
    return bool(batch_norms(layer)) and isinstance(layer, nn.modules.batchnorm._BatchNorm)


def _draws(layer: Any) -> bool:
    """Whether a layer draws random numbers: dropout, or MONAI's and timm's dropped blocks."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if type(layer).__name__ == "MBConvBlock":
        return bool(layer.id_skip and layer.stride == 1 and layer.drop_connect_rate)
    return type(layer).__name__ == "DropPath" and bool(layer.drop_prob)


def prepare_model(model: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """Return the model on its device, in its dtype and with channels last, which convolutions run faster on."""
    model = model.to(device, WEIGHT_DTYPES[precision])
    two_dimensional = not any(isinstance(layer, nn.Conv3d) for layer in model.modules())
    if two_dimensional:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return model
