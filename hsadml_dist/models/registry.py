"""The one table of backbones: name -> builder of a module that maps images to feature vectors."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hsadml_dist.models import monai_nets, residual, transformer

Builder = Callable[[int, int, int], tuple[nn.Module, int]]
"""Maps (in_channels, spatial_dims, image_size) to (module of ``(B, C, H, W[, D]) -> (B, F)``, F)."""

BACKBONES: dict[str, Builder] = {
    "resnet_gn_small": residual.small,
    "resnet_gn_tiny": residual.tiny,
    "vit_small_patches": transformer.small,
    "monai_densenet121": monai_nets.densenet121,
    "monai_efficientnet_b0": monai_nets.efficientnet_b0,
    "monai_resnet18": monai_nets.resnet18,
    "monai_seresnet50": monai_nets.seresnet50,
}
