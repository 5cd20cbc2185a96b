"""Split slices into queries and gallery, and compute their embeddings and thumbnails, distributed over ranks.

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
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.baselines import THUMBNAIL_SIDE, thumbnails
from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.patient_metrics import PatientIds

Image = npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class EvaluationSplit:
    """Slices of an evaluation: queries from one fold, the gallery from the training folds.

    Attributes:
        queries: Index positions of the slices of the fold.
        gallery: Index positions of the slices of the training folds.
        left_out: Slices of the fold that are not evaluated, because training has no slices of their class.
    """

    shards: ShardLocation
    index: ShardIndex
    fold: int
    queries: tuple[int, ...]
    gallery: tuple[int, ...]
    left_out: int = 0

    def labels(self, positions: Sequence[int]) -> Ints:
        """Return the classes, int64, of the slices at ``positions``."""
        return np.array([self.index.samples[position].label for position in positions], dtype=np.int64)

    def patient_ids(self, positions: Sequence[int]) -> PatientIds:
        """Return the patients and exams of the slices at ``positions``."""
        rows = [self.index.samples[position] for position in positions]
        return PatientIds(persons=[row.person for row in rows], exams=[row.exam for row in rows])


def make_split(
    shards: ShardLocation, index: ShardIndex, fold: int, held_out: Sequence[int], *, closed_set: bool = False
) -> EvaluationSplit:
    """Take the slices of ``fold`` as queries and those of the folds that are not ``held_out`` as gallery.

    Args:
        shards: Location of the shards.
        index: Their index, with the labels that the network learns.
        fold: The fold to evaluate.
        held_out: The folds that training does not read.
        closed_set: Leave out queries whose class is not in the gallery. Needed if patients are the classes, because all
            slices of a patient may be in one fold.

    Raises:
        DataError: There is no such fold, no training fold, or no query in a closed set.
    """
    gallery = index.outside_folds(held_out)
    if not gallery:
        folds = ", ".join(map(str, sorted(held_out)))
        raise DataError(f"{shards}: all folds are held out ({folds}); evaluation needs a training fold as gallery")
    every = index.in_folds([fold])
    known = {index.samples[position].label for position in gallery}
    queries = tuple(position for position in every if not closed_set or index.samples[position].label in known)
    if not queries:
        raise DataError(f"{shards}: fold {fold} has no slice of a class in the training folds")
    return EvaluationSplit(
        shards=shards, index=index, fold=fold, queries=queries, gallery=gallery, left_out=len(every) - len(queries)
    )


@dataclass(frozen=True, kw_only=True)
class SliceBatch:
    """A batch of slices, as fp32 input of the network.

    Attributes:
        thumbnail_BP: Thumbnails for the baselines, uint8, from the stored pixels at any input size of the network.
    """

    image_B1HW: torch.Tensor
    thumbnail_BP: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Embeddings, not normalised, in the dtype of the model, and thumbnails, uint8, both on its device."""

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
    """Yield the slices at ``positions`` of the index in batches, in that order, without augmentation.

    Raises:
        DataError: A shard is missing or damaged.
    """
    reader = ShardReader(shards, index)
    yield from image_batches((reader.image(position) for position in positions), image_size=image_size, batch=batch)


def image_batches(images: Iterable[Image], *, image_size: int, batch: int) -> Iterator[SliceBatch]:
    """Yield images (H, W), scaled as in shards, in batches, in their order."""
    prepare, rest = Preprocessing(image_size), iter(images)
    while pixels := list(islice(rest, batch)):
        small = [thumbnails(torch.from_numpy(image.astype(np.float32))[None, None]) for image in pixels]
        yield SliceBatch(
            image_B1HW=torch.stack([prepare(image) for image in pixels]).float(), thumbnail_BP=torch.cat(small)
        )


@torch.no_grad()
def embed(model: nn.Module, batches: Iterable[SliceBatch], *, embedding_dim: int, device: torch.device) -> Embeddings:
    """Compute embeddings and thumbnails of all batches, in their order.

    Args:
        model: Maps images (B, 1, H, W) to embeddings (B, D), on ``device``; its training mode is restored afterwards.
        batches: May be empty.
        embedding_dim: D.
        device: Device of the model.
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
