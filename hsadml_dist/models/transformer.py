"""A small vision transformer for CPU recipes. Source: Dosovitskiy et al., ICLR 2021, without the class token."""

from __future__ import annotations

import torch
from torch import nn

from hsadml_dist.models.residual import CONVOLUTIONS

PATCHES_PER_SIDE = 8


def vit_small_patches(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return a transformer of 6 layers and width 192 over 8 patches a side, 2.7 million weights (2D)."""
    return VisionTransformer(in_channels, spatial_dims, image_size, width=192, layers=6, heads=3), 192


class VisionTransformer(nn.Module):
    """Patches, learnt positions, pre-norm encoder, mean over patches: ``(B, C, H, W[, D]) -> (B, width)``."""

    def __init__(
        self, in_channels: int, spatial_dims: int, image_size: int, *, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        patch = image_size // PATCHES_PER_SIDE
        tokens = (image_size // patch) ** spatial_dims
        self.patches = CONVOLUTIONS[spatial_dims](in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return features (B, width)."""
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        return self.encoder(tokens + self.positions).mean(dim=1)
