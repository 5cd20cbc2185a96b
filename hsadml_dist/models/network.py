"""The whole network: a backbone and the neck that makes its features an embedding."""

from __future__ import annotations

import torch
from torch import nn

from hsadml_dist.errors import ConfigError, Fault, nearest
from hsadml_dist.models.registry import BACKBONES

RANK_DEPENDENT = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class EmbeddingNet(nn.Module):
    """Backbone, dropout, linear neck: ``(B, C, H, W[, D]) -> (B, embedding_dim)``, not normalised."""

    def __init__(self, backbone: nn.Module, features: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        # A dropout of 0 is left out, so that the net is seen to be the same function on any number of ranks.
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.neck = nn.Linear(features, embedding_dim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, embedding_dim)."""
        return self.neck(self.dropout(self.backbone(image)))


def build_model(
    name: str,
    *,
    embedding_dim: int,
    dropout: float = 0.0,
    image_size: int = 112,
    in_channels: int = 1,
    spatial_dims: int = 2,
    seed: int = 0,
) -> EmbeddingNet:
    """Return the named network with weights drawn from ``seed``, fp32, on the CPU.

    Raises:
        ConfigError: Unknown backbone.
    """
    if name not in BACKBONES:
        problem = f"{name!r} is unknown{nearest(name, BACKBONES)}; allowed: {', '.join(BACKBONES)}"
        raise ConfigError([Fault(where="recipe", key="model.name", problem=problem)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, features = BACKBONES[name](in_channels, spatial_dims, image_size)
        return EmbeddingNet(backbone, features, embedding_dim, dropout)


def rank_dependent_layers(model: nn.Module) -> list[str]:
    """Return the names of layers whose output depends on how a batch is cut among ranks: batch norms and dropouts."""
    return [name for name, layer in model.named_modules() if isinstance(layer, RANK_DEPENDENT)]
