"""Small backbones for CPU recipes: residual networks with GroupNorm, and a vision transformer.

No layer uses batch statistics, so each computes the same function on any number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
GROUP_CHANNELS = 16


def resnet_gn_small(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return a residual network of 1.0 million weights (2D), for CPU recipes at about 112 pixels."""
    return ResidualNet(in_channels, spatial_dims, widths=(32, 64, 128, 208)), 208


def resnet_gn_tiny(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return a residual network of 20 thousand weights (2D), for tests."""
    return ResidualNet(in_channels, spatial_dims, widths=(16, 32)), 32


class ResidualNet(nn.Module):
    """Stem of stride 2, one residual block per stage, global mean: ``(B, C, H, W[, D]) -> (B, widths[-1])``."""

    def __init__(self, in_channels: int, spatial_dims: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        conv = CONVOLUTIONS[spatial_dims]
        self.stem = nn.Sequential(
            conv(in_channels, widths[0], 5, stride=2, padding=2, bias=False), _norm(widths[0]), nn.ReLU()
        )
        inputs = (widths[0], *widths[:-1])
        strides = (1, *[2] * (len(widths) - 1))
        blocks = zip(inputs, widths, strides, strict=True)
        self.stages = nn.Sequential(*(ResidualBlock(conv, i, o, stride) for i, o, stride in blocks))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.stages(self.stem(image)).flatten(2).mean(dim=2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut. Source: He et al., CVPR 2016; norm: Wu and He, ECCV 2018."""

    def __init__(self, conv: Any, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            _norm(channels_out),
            nn.ReLU(),
            conv(channels_out, channels_out, 3, padding=1, bias=False),
            _norm(channels_out),
        )
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else conv(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, at ``1 / stride`` of the input's resolution."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


PATCHES_PER_SIDE = 8


def vit_small_patches(in_channels: int, spatial_dims: int, image_size: int) -> tuple[nn.Module, int]:
    """Return a transformer of 6 layers and width 192 over 8 patches per side, 2.7 million weights (2D)."""
    return VisionTransformer(in_channels, spatial_dims, image_size, width=192, layers=6, heads=3), 192


class VisionTransformer(nn.Module):
    """Patch embedding, learnt positions, pre-norm encoder, mean over patches: ``(B, C, H, W[, D]) -> (B, width)``."""

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
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        return self.encoder(tokens + self.positions).mean(dim=1)
