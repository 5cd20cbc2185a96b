"""Which slices a verdict judges, and which serve as references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.staging import ShardLocation
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.result import PatientIds
from hsadml_dist.evaluation.scores import Ints


@dataclass(frozen=True, kw_only=True)
class EvaluationSplit:
    """Which slices are judged and which serve as references.

    Attributes:
        shards: Where they are read.
        index: Its index.
        fold: The fold that is judged.
        test: Positions of its slices.
        references: Positions of the training folds' slices.
        left_out: Slices of the fold that are not judged, since training knows nothing of their class.
    """

    shards: ShardLocation
    index: ShardIndex
    fold: int
    test: tuple[int, ...]
    references: tuple[int, ...]
    left_out: int = 0

    def labels(self, positions: Sequence[int]) -> Ints:
        """Return the classes, int64, of the slices at ``positions``."""
        return np.array([self.index.samples[position].label for position in positions], dtype=np.int64)

    def people(self, positions: Sequence[int]) -> PatientIds:
        """Return whose slices those at ``positions`` are."""
        rows = [self.index.samples[position] for position in positions]
        return PatientIds(persons=[row.person for row in rows], exams=[row.exam for row in rows])


def make_split(
    shards: ShardLocation, index: ShardIndex, fold: int, held: Sequence[int], *, closed: bool = False
) -> EvaluationSplit:
    """Return the slices of ``fold`` as the test and those of the folds that are not ``held`` as references.

    Args:
        shards: Where they are read.
        index: Its index, with the labels that the network learns.
        fold: The fold to judge.
        held: The folds that training does not read.
        closed: Whether slices of classes without any reference are left out: a closed set. Persons need it, each of
            whom may have all slices in one fold.

    Raises:
        DataError: No such fold, no fold left to refer to, or a closed set without a slice.
    """
    references = index.outside_folds(held)
    if not references:
        names = ", ".join(map(str, sorted(held)))
        raise DataError(f"{shards}: all folds are held out ({names}): no training fold is left to find neighbours in")
    every = index.in_folds([fold])
    known = {index.samples[position].label for position in references}
    test = tuple(position for position in every if not closed or index.samples[position].label in known)
    if not test:
        raise DataError(f"{shards}: fold {fold} holds no slice of a class that the training folds know")
    return EvaluationSplit(
        shards=shards, index=index, fold=fold, test=test, references=references, left_out=len(every) - len(test)
    )
