"""Embeddings and thumbnails of slices, each rank its part.

Shapes: N slices of this rank, B slices of one batch, D components, P pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hsadml_dist.data.loader import Batch
from hsadml_dist.evaluation.control import SIDE, thumbnails
from hsadml_dist.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What one rank holds of a set of slices.

    Attributes:
        emb_ND: Embeddings, not normalised, of the model's dtype, on the device.
        thumbnail_NP: Thumbnails for the raw-pixel control, uint8, on the device.
    """

    emb_ND: torch.Tensor
    thumbnail_NP: torch.Tensor


def rank_positions(positions: Sequence[int], batch: int, topology: Topology) -> Sequence[int]:
    """Return this rank's contiguous part of ``positions``, cut between batches.

    The batches are then the same for any number of ranks, and so is each embedding, to the last bit: convolutions and
    matrix products round differently for another batch size.
    """
    part = topology.part(-(-len(positions) // batch))
    return positions[part.start * batch : part.stop * batch]


@torch.no_grad()
def embed(model: nn.Module, batches: Iterable[Batch], *, embedding_dim: int, device: torch.device) -> Embedded:
    """Return embeddings and thumbnails of all batches, in their order.

    Args:
        model: Maps images (B, 1, H, W) to embeddings (B, D), on ``device``; its training mode is restored afterwards.
        batches: Images (B, 1, H, W), in order; there may be none.
        embedding_dim: D.
        device: Where the model is.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    embeddings = [torch.empty((0, embedding_dim), dtype=dtype, device=device)]
    small = [torch.empty((0, SIDE * SIDE), dtype=torch.uint8, device=device)]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            image = batch.image.to(device)
            embeddings.append(model(image.to(dtype)))
            small.append(thumbnails(image))
    finally:
        model.train(was_training)
    return Embedded(emb_ND=torch.cat(embeddings), thumbnail_NP=torch.cat(small))
