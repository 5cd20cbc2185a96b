"""Embeddings and thumbnails of slices, each rank its part.

Shapes: N slices of this rank, B slices of one batch, D components, P pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.shard_cache import ShardLocation
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.evaluation.baselines import THUMBNAIL_SIDE, thumbnails


@dataclass(frozen=True, kw_only=True)
class SliceBatch:
    """A batch to be judged.

    Attributes:
        image_B1HW: The network's input, fp32.
        thumbnail_BP: For the raw-pixel control, uint8; from the stored pixels, whatever size the network sees.
    """

    image_B1HW: torch.Tensor
    thumbnail_BP: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Embeddings:
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
    part = topology.rank_range(-(-len(positions) // batch))
    return positions[part.start * batch : part.stop * batch]


def slice_batches(
    shards: ShardLocation, index: ShardIndex, positions: Sequence[int], *, image_size: int, batch: int
) -> Iterator[SliceBatch]:
    """Yield the slices at ``positions`` of the index, without augmentation, in that order, ``batch`` at a time.

    Raises:
        DataError: A shard is missing or damaged.
    """
    reader = ShardReader(shards, index)
    yield from image_batches((reader.image(position) for position in positions), image_size=image_size, batch=batch)


def image_batches(images: Iterable[npt.NDArray[np.uint16]], *, image_size: int, batch: int) -> Iterator[SliceBatch]:
    """Yield images as shards hold them, (H, W), as batches to be judged, in their order, ``batch`` at a time."""
    prepare, rest = Preprocessing(image_size), iter(images)
    while pixels := list(islice(rest, batch)):
        small = [thumbnails(torch.from_numpy(image.astype(np.float32))[None, None]) for image in pixels]
        yield SliceBatch(
            image_B1HW=torch.stack([prepare(image) for image in pixels]).float(), thumbnail_BP=torch.cat(small)
        )


@torch.no_grad()
def embed(model: nn.Module, batches: Iterable[SliceBatch], *, embedding_dim: int, device: torch.device) -> Embeddings:
    """Return embeddings and thumbnails of all batches, in their order.

    Args:
        model: Maps images (B, 1, H, W) to embeddings (B, D), on ``device``; its training mode is restored afterwards.
        batches: There may be none.
        embedding_dim: D.
        device: Where the model is.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    embeddings = [torch.empty((0, embedding_dim), dtype=dtype, device=device)]
    small = [torch.empty((0, THUMBNAIL_SIDE * THUMBNAIL_SIDE), dtype=torch.uint8, device=device)]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            embeddings.append(model(batch.image_B1HW.to(device, dtype)))
            small.append(batch.thumbnail_BP.to(device))
    finally:
        model.train(was_training)
    return Embeddings(emb_ND=torch.cat(embeddings), thumbnail_NP=torch.cat(small))
