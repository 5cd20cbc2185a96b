"""MONAI's vision transformers and the encoder of its SwinUNETR, with the mean over their tokens as features.

Widths, depths and heads as published: small Touvron et al., ICML 2021 (Table 1); base, large and huge Dosovitskiy et
al., ICLR 2021 (Table 1). Instead of a class token the mean over tokens, and no bias before the attention, as MONAI has
it: that of the keys would have no gradient but rounding, which an adaptive optimiser turns into steps of full length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

Built = tuple[nn.Module, int]

SWIN_WIDTH = 48
SWIN_DEPTHS = (2, 2, 2, 2)
SWIN_HEADS = (3, 6, 12, 24)
SWIN_WINDOW = 7


class TokenMean(nn.Module):
    """A vision transformer's parts and the mean over its tokens: ``(B, C, H, W[, D]) -> (B, width)``."""

    def __init__(self, patch_embedding: nn.Module, blocks: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.patch_embedding, self.blocks, self.norm = patch_embedding, blocks, norm

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return features (B, width)."""
        tokens_BTF = self.patch_embedding(image)
        for block in self.blocks:
            tokens_BTF = block(tokens_BTF)
        return self.norm(tokens_BTF).mean(dim=1)


class SwinEncoder(nn.Module):
    """The encoder of SwinUNETR and the mean over its last stage: ``(B, C, H, W[, D]) -> (B, 16 SWIN_WIDTH)``.

    Source: Hatamizadeh et al., BrainLes 2021. As the decoder sees it, the last stage is normalised, without weights.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return features (B, 16 SWIN_WIDTH)."""
        tokens_BTF = self.encoder(image, normalize=False)[-1].flatten(2).transpose(1, 2)
        return functional.layer_norm(tokens_BTF, tokens_BTF.shape[-1:]).mean(dim=1)


def vit(patch: int, width: int, layers: int, heads: int, in_channels: int, spatial_dims: int, image_size: int) -> Built:
    """Return a vision transformer over patches of ``patch`` pixels a side."""
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
        # MONAI's blocks hold a norm for an attention that a plain ViT does not have: DDP refuses a weight without use.
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
