"""Which slices a verdict judges, and which serve as references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.result import People
from hsadml_dist.evaluation.scores import Ints


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which slices are judged and which serve as references.

    Attributes:
        shards: Folder of the shards.
        index: Its index.
        fold: The fold that is judged.
        test: Positions of its slices.
        references: Positions of the training folds' slices.
    """

    shards: Path
    index: ShardIndex
    fold: int
    test: tuple[int, ...]
    references: tuple[int, ...]

    def labels(self, positions: Sequence[int]) -> Ints:
        """Return the classes, int64, of the slices at ``positions``."""
        return np.array([self.index.samples[position].label for position in positions], dtype=np.int64)

    def people(self, positions: Sequence[int]) -> People:
        """Return whose slices those at ``positions`` are."""
        rows = [self.index.samples[position] for position in positions]
        return People(persons=[row.person for row in rows], exams=[row.exam for row in rows])


def split_of(shards: Path, index: ShardIndex, fold: int, held: Sequence[int]) -> Split:
    """Return the slices of ``fold`` as the test and those of the folds that are not ``held`` as references.

    Raises:
        DataError: No such fold, or no fold left to refer to.
    """
    references = index.outside_folds(held)
    if not references:
        names = ", ".join(map(str, sorted(held)))
        raise DataError(f"{shards}: all folds are held out ({names}): no training fold is left to find neighbours in")
    return Split(shards=shards, index=index, fold=fold, test=index.in_folds([fold]), references=references)
