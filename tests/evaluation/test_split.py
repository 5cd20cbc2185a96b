"""Which slices are judged, and which are referred to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.split import make_split
from tests.data.test_index import make_index, make_row

# Labels 0, 1, 2, 0, ...; folds 0, 0, 0, 1, 1, 2: fold 0 alone holds class 2.
FOLDS = (0, 0, 0, 1, 1, 2)


@pytest.fixture
def index() -> ShardIndex:
    return make_index(
        [make_row(number, fold=fold, label=(0, 1, 2, 0, 1, 1)[number]) for number, fold in enumerate(FOLDS)]
    )


def test_an_open_set_is_judged_whole(index: ShardIndex) -> None:
    split = make_split(Path("s"), index, 0, [0, 1])
    assert (split.test, split.references, split.left_out) == ((0, 1, 2), (5,), 0)
    assert split.labels(split.test).tolist() == [0, 1, 2]
    assert split.people((0, 5)).persons == ["p0", "p2"]


def test_a_closed_set_leaves_out_what_training_does_not_know_and_counts_it(index: ShardIndex) -> None:
    split = make_split(Path("s"), index, 0, [0], closed=True)
    assert (split.test, split.references, split.left_out) == ((0, 1), (3, 4, 5), 1)
    split = make_split(Path("s"), index, 0, [0, 1], closed=True)
    assert (split.test, split.references, split.left_out) == ((1,), (5,), 2)


def test_nothing_to_refer_to_and_nothing_to_judge_are_refused(index: ShardIndex) -> None:
    with pytest.raises(DataError, match="no training fold is left"):
        make_split(Path("s"), index, 0, [0, 1, 2])
    with pytest.raises(DataError, match="fold 1 holds no slice of a class that the training folds know"):
        make_split(Path("s"), make_index([make_row(number) for number in range(2)]), 1, [1], closed=True)
