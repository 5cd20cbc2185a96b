"""A network's forward pass as every engine does it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from hsadml_dist.engine.protocol import Precision


def embedded(network: nn.Module, image: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return the embeddings (B, D) of images (B, C, H, W[, D]); bf16 means autocast."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(image)


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back to what they were before: nothing is learnt from what is done meanwhile."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    for name, buffer in model.named_buffers():
        buffer.data.copy_(buffers[name])
