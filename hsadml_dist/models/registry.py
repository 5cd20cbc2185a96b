"""The one table of backbones: name -> builder of a module that maps images to feature vectors."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hsadml_dist.models.monai_nets import CONVOLUTIONAL
from hsadml_dist.models.monai_tokens import TOKENS
from hsadml_dist.models.residual import resnet_gn_small, resnet_gn_tiny, vit_small_patches

BackboneBuilder = Callable[[int, int, int], tuple[nn.Module, int]]
"""Maps (in_channels, spatial_dims, image_size) to (module of ``(B, C, H, W[, D]) -> (B, F)``, F)."""

BACKBONES: dict[str, BackboneBuilder] = {
    "resnet_gn_small": resnet_gn_small,
    "resnet_gn_tiny": resnet_gn_tiny,
    "vit_small_patches": vit_small_patches,
    **CONVOLUTIONAL,
    **TOKENS,
}
