"""Count the floating-point operations of a network from the shapes of its layers.

Counted are convolutions, linear layers and the two products of attention, a multiplication and an addition as two
operations. Norms, activations and additions are left out: they are below 1 % of the backbones here and bound by memory.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Formula = Callable[[Any, torch.Tensor, torch.Tensor], int]
"""Maps (layer, its input, its output) to the operations of one call."""


def forward_flops(network: nn.Module, image: torch.Tensor) -> int:
    """Return the floating-point operations of one forward pass.

    A training step takes three times as many: the backward pass computes a gradient of each layer's input and one of
    its weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Recomputed activations are not counted.

    Args:
        network: Any network of the layers above; on the meta device nothing is computed.
        image: A batch (B, C, H, W[, D]) on the network's device.
    """
    total = 0

    def count(formula: Formula) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            nonlocal total
            total += formula(layer, inputs[0], output[0] if isinstance(output, tuple) else output)

        return hook

    handles: list[RemovableHandle] = []
    try:
        for layer in network.modules():
            formula = _formula(layer)
            if formula is not None:
                handles.append(layer.register_forward_hook(count(formula)))
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _formula(layer: nn.Module) -> Formula | None:
    for kind, formula in _FORMULAS.items():
        if isinstance(layer, kind):
            return formula
    # Classes of MONAI, by name, because its import takes seconds.
    return _attention_products if type(layer).__name__ in ("SABlock", "WindowAttention") else None


def _convolution(layer: Any, image: torch.Tensor, out: torch.Tensor) -> int:
    return 2 * out.numel() * layer.in_channels // layer.groups * prod(layer.kernel_size)


def _linear(layer: Any, rows: torch.Tensor, out: torch.Tensor) -> int:
    return 2 * out.numel() * layer.in_features


def _attention_products(layer: Any, tokens_BLE: torch.Tensor, out_BLE: torch.Tensor) -> int:
    """Queries with keys, and weights with values; the projections are linear layers of their own."""
    batch, tokens, width = tokens_BLE.shape
    return 4 * batch * tokens**2 * width


def _multihead_attention(layer: Any, tokens_BLE: torch.Tensor, out_BLE: torch.Tensor) -> int:
    """Torch's layer, whose four projections are not called as layers."""
    return 8 * tokens_BLE.numel() * layer.embed_dim + _attention_products(layer, tokens_BLE, out_BLE)


_FORMULAS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Formula] = {
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _convolution,
    # Before nn.Linear, because its output projection is one that is never called.
    nn.MultiheadAttention: _multihead_attention,
    nn.Linear: _linear,
}
