"""MONAI backbones without their classifier: convolutional networks, vision transformers and the SwinUNETR encoder.

MONAI is imported when a network is built, because the import takes seconds and hundreds of megabytes.

Widths, depths and heads of the transformers as published: small Touvron et al., ICML 2021 (Table 1); base, large and
huge Dosovitskiy et al., ICLR 2021 (Table 1). Features are the mean over tokens instead of a class token. The attention
has no query-key-value bias, as in MONAI: the bias of the keys would receive only rounding errors as its gradient, which
an adaptive optimiser turns into full-size steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

Built = tuple[nn.Module, int]


def densenet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a densely connected network. Source: Huang et al., CVPR 2017."""
    from monai.networks import nets

    return _without_last(getattr(nets, kind)(spatial_dims, in_channels, out_channels=2), "class_layers.out")


def efficientnet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return an EfficientNet, with the dropout and stochastic depth of its paper. Source: Tan and Le, ICML 2019."""
    from monai.networks.nets import EfficientNetBN

    net = EfficientNetBN(kind, pretrained=False, spatial_dims=spatial_dims, in_channels=in_channels)
    return _without_last(net, "_fc")


def resnet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a residual network whose first convolution has stride 1, as in MONAI. Source: He et al., CVPR 2016."""
    from monai.networks import nets

    net = getattr(nets, kind)(spatial_dims=spatial_dims, n_input_channels=in_channels, num_classes=2)
    return _without_last(net, "fc")


def seresnet(kind: str, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a residual network with squeeze and excitation. Source: Hu et al., CVPR 2018."""
    from monai.networks import nets

    return _without_last(getattr(nets, kind)(spatial_dims=spatial_dims, in_channels=in_channels), "last_linear")


def _without_last(net: nn.Module, name: str) -> Built:
    """Replace the named linear layer by the identity; return the network and the input width of the layer."""
    parent_name, _, leaf = name.rpartition(".")
    parent = net.get_submodule(parent_name)
    last = getattr(parent, leaf)
    setattr(parent, leaf, nn.Identity())
    return net, last.in_features


CONVOLUTIONAL: dict[str, Callable[[int, int, int], Built]] = {
    **{f"monai_densenet{depth}": partial(densenet, f"DenseNet{depth}") for depth in (121, 169, 201, 264)},
    **{f"monai_efficientnet_b{size}": partial(efficientnet, f"efficientnet-b{size}") for size in range(8)},
    **{f"monai_resnet{depth}": partial(resnet, f"resnet{depth}") for depth in (18, 34, 50, 101)},
    **{f"monai_seresnet{depth}": partial(seresnet, f"SEResNet{depth}") for depth in (50, 101, 152)},
}


SWIN_WIDTH = 48
SWIN_DEPTHS = (2, 2, 2, 2)
SWIN_HEADS = (3, 6, 12, 24)
SWIN_WINDOW = 7


class TokenMean(nn.Module):
    """A vision transformer and the mean over its tokens: ``(B, C, H, W[, D]) -> (B, width)``."""

    def __init__(self, patch_embedding: nn.Module, blocks: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.patch_embedding, self.blocks, self.norm = patch_embedding, blocks, norm

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens_BTF = self.patch_embedding(image)
        for block in self.blocks:
            tokens_BTF = block(tokens_BTF)
        return self.norm(tokens_BTF).mean(dim=1)


class SwinEncoder(nn.Module):
    """The encoder of SwinUNETR and the mean over its last stage: ``(B, C, H, W[, D]) -> (B, 16 SWIN_WIDTH)``.

    Source: Hatamizadeh et al., BrainLes 2021. The last stage is normalised without weights, as for the decoder.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens_BTF = self.encoder(image, normalize=False)[-1].flatten(2).transpose(1, 2)
        return functional.layer_norm(tokens_BTF, tokens_BTF.shape[-1:]).mean(dim=1)


def vit(patch: int, width: int, layers: int, heads: int, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a vision transformer over patches of ``patch`` pixels per side."""
    from monai.networks.nets import ViT

    net = ViT(
        in_channels,
        img_size=image_size,
        patch_size=patch,
        hidden_size=width,
        mlp_dim=4 * width,
        num_layers=layers,
        num_heads=heads,
        spatial_dims=spatial_dims,
    )
    for block in net.blocks:
        # MONAI's blocks have a norm for cross-attention, which a plain ViT does not use; DDP rejects unused weights.
        block.norm_cross_attn = nn.Identity()
        setattr(block.attn, "use_flash_attention", True)  # noqa: B010  # mypy refuses the plain assignment
    return TokenMean(net.patch_embedding, net.blocks, net.norm), width


def swin_encoder(in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return the encoder of SwinUNETR."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    encoder = SwinTransformer(
        in_channels,
        SWIN_WIDTH,
        window_size=(SWIN_WINDOW,) * spatial_dims,
        patch_size=(2,) * spatial_dims,
        depths=SWIN_DEPTHS,
        num_heads=SWIN_HEADS,
        spatial_dims=spatial_dims,
    )
    return SwinEncoder(encoder), 16 * SWIN_WIDTH


TOKENS: dict[str, Callable[[int, int, int], Built]] = {
    "monai_vit_small_16": partial(vit, 16, 384, 12, 6),
    "monai_vit_base_16": partial(vit, 16, 768, 12, 12),
    "monai_vit_large_16": partial(vit, 16, 1024, 24, 16),
    "monai_vit_huge_14": partial(vit, 14, 1280, 32, 16),
    "monai_swinunetr_encoder": swin_encoder,
}
