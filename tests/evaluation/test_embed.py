"""Splitting slices into queries and gallery, and embedding them in fixed batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from hsadml_dist.data.index import ShardIndex, load_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.baselines import thumbnails
from hsadml_dist.evaluation.embed import SliceBatch, embed, make_split, rank_positions, slice_batches
from tests.data.test_index import make_index, make_row

# Labels 0, 1, 2, 0, ...; only fold 0 has slices of class 2.
FOLDS = (0, 0, 0, 1, 1, 2)


@pytest.fixture
def index() -> ShardIndex:
    return make_index(
        [make_row(number, fold=fold, label=(0, 1, 2, 0, 1, 1)[number]) for number, fold in enumerate(FOLDS)]
    )


def test_make_split_takes_the_whole_fold_as_queries(index: ShardIndex) -> None:
    split = make_split(Path("s"), index, 0, [0, 1])
    assert (split.queries, split.gallery, split.left_out) == ((0, 1, 2), (5,), 0)
    assert split.labels(split.queries).tolist() == [0, 1, 2]
    assert split.patient_ids((0, 5)).persons == ["p0", "p2"]


def test_make_split_of_a_closed_set_leaves_out_unknown_classes(index: ShardIndex) -> None:
    split = make_split(Path("s"), index, 0, [0], closed_set=True)
    assert (split.queries, split.gallery, split.left_out) == ((0, 1), (3, 4, 5), 1)
    split = make_split(Path("s"), index, 0, [0, 1], closed_set=True)
    assert (split.queries, split.gallery, split.left_out) == ((1,), (5,), 2)


def test_make_split_refuses_empty_gallery_and_empty_queries(index: ShardIndex) -> None:
    with pytest.raises(DataError, match=r"all folds are held out \(0, 1, 2\)"):
        make_split(Path("s"), index, 0, [0, 1, 2])
    with pytest.raises(DataError, match="fold 1 has no slice"):
        make_split(Path("s"), make_index([make_row(number) for number in range(2)]), 1, [1], closed_set=True)


@pytest.mark.parametrize(
    ("count", "batch", "world"), [(24, 5, 1), (24, 5, 3), (24, 5, 4), (3, 5, 4), (0, 5, 2), (40, 1, 7)]
)
def test_rank_positions_assign_whole_batches_in_order(count: int, batch: int, world: int) -> None:
    positions = tuple(range(100, 100 + count))
    parts = [rank_positions(positions, batch, Topology(rank=rank, world_size=world)) for rank in range(world)]
    assert tuple(itertools.chain(*parts)) == positions
    starts = [start for part in parts for start in part[::batch]]
    assert starts == list(positions[::batch])


def test_slice_batches_keep_order_and_take_thumbnails_from_stored_pixels(shards: Path) -> None:
    index = load_index(shards)
    batches = list(slice_batches(shards, index, [40, 3, 7], image_size=16, batch=2))
    assert [tuple(batch.image_B1HW.shape) for batch in batches] == [(2, 1, 16, 16), (1, 1, 16, 16)]
    stored = torch.from_numpy(ShardReader(shards, index).image(7).astype("float32"))
    assert torch.equal(batches[1].thumbnail_BP, thumbnails(stored[None, None]))


class Noisy(nn.Module):
    """Flatten, then apply dropout: random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(image.flatten(1) * self.weight, training=self.training)


def test_embed_uses_evaluation_mode_and_restores_training_mode() -> None:
    model = Noisy()
    images = torch.rand(4, 1, 3, 3)
    batches = [SliceBatch(image_B1HW=part, thumbnail_BP=thumbnails(part)) for part in images.split(3)]
    found = embed(model, batches, embedding_dim=9, device=torch.device("cpu"))
    assert model.training
    assert torch.equal(found.emb_ND, images.flatten(1).double())
    assert not found.emb_ND.requires_grad
    assert torch.equal(found.thumbnail_NP, thumbnails(images))


def test_embed_without_slices_returns_empty_rows() -> None:
    found = embed(Noisy(), [], embedding_dim=9, device=torch.device("cpu"))
    assert (found.emb_ND.shape, found.emb_ND.dtype, found.thumbnail_NP.shape) == ((0, 9), torch.float64, (0, 4096))
