"""Pool the folds and seeds of one loss on one set of shards: each slice is classified by the runs that held it out.

Shapes: N slices, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hsadml_dist.evaluation.comparison import Outcomes
from hsadml_dist.evaluation.intervals import Caution, Interval, accuracy_interval, balanced_interval, interval_caution
from hsadml_dist.evaluation.metrics import Ints, balanced_accuracy
from hsadml_dist.evaluation.patient_metrics import Clusters, clusters
from hsadml_dist.evaluation.result import KNN, Predictions


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """A run with its stored evaluation.

    Attributes:
        name: Name of the run in messages and on the page.
        result: ``result.json`` as a dictionary.
        folds: All folds of its shards; empty if the shards are not available.
        settings: Recipe settings that define the training, by dotted key.
    """

    name: str
    result: Mapping[str, Any]
    predictions: Predictions
    folds: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, str, str]:
        """The pool of the run: split unit, data digest and loss."""
        return self.result["split_unit"], self.result["data_digest"], self.result["loss"]


@dataclass(frozen=True, kw_only=True)
class PooledSlices:
    """All slices of a pool, each once, in the order of its runs.

    Attributes:
        persons: Keyed hashes of patients, None if unknown.
        exams: Keyed hashes of exams, None if unknown.
        label_N: True classes, int64.
        outcomes: Method to its outcomes; only methods that all runs of the pool have.
    """

    keys: tuple[str, ...]
    persons: tuple[str | None, ...]
    exams: tuple[str | None, ...]
    label_N: Ints
    outcomes: Mapping[str, Outcomes]

    def clusters(self, rows: Sequence[int]) -> Clusters:
        """Group the slices at ``rows`` by patient."""
        return clusters([self.persons[row] for row in rows], [self.exams[row] for row in rows])


@dataclass(frozen=True, kw_only=True)
class PooledMetrics:
    """Metrics of a method over all folds of a pool, with intervals by patient; None for a single patient.

    Attributes:
        accuracy: Mean over slices of the share of seeds that are correct.
        balanced_accuracy: The same averaged over classes.
        balanced_interval: Its interval; None above 256 classes, too.
    """

    accuracy: float
    interval: Interval | None
    balanced_accuracy: float
    balanced_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class SubsetAccuracy:
    """Accuracy of the nearest neighbour on the fold or with the seed ``number``; ``persons`` is None if unknown."""

    number: int
    slices: int
    persons: int | None
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Pooled results of the runs of one loss on one set of shards.

    Attributes:
        split_unit: Unit that is never split between folds: person, exam or slice.
        source: Name of the source of the images; None in results of older versions.
        data_digest: SHA-256 of the shards' samples table, in hex.
        folds: Folds that at least one run has evaluated.
        expected_folds: All folds of the shards or, if unknown, those that any run on these shards has evaluated.
        missing: (seed, fold) that no run has evaluated.
        slices: Number of distinct slices.
        persons: Number of patients; None if unknown.
        unit: Unit that the intervals treat as independent: ``person``, otherwise ``exam``, otherwise ``slice``.
        units: Number of them.
        caution: See :class:`~hsadml_dist.evaluation.result.Intervals`.
        shared_persons: Largest number of patients on both sides of a run; above 0 the figures are too optimistic. None
            if unknown.
        trained_slices: Largest number of slices that a run was trained on and evaluated; above 0 no figure is of unseen
            slices. None if unknown.
        trained_persons: The same for patients, which split units other than the patient make likely.
        by_fold: Accuracy of the nearest neighbour by fold, averaged over seeds.
        by_seed: Accuracy of the nearest neighbour by seed, pooled over folds.
    """

    split_unit: str
    source: str | None
    data_digest: str
    loss: str
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    expected_folds: tuple[int, ...]
    missing: tuple[tuple[int, int], ...]
    slices: int
    persons: int | None
    unit: str
    units: int
    caution: Caution | None
    shared_persons: int | None
    trained_slices: int | None
    trained_persons: int | None
    methods: Mapping[str, PooledMetrics]
    by_fold: tuple[SubsetAccuracy, ...]
    by_seed: tuple[SubsetAccuracy, ...]
    runs: tuple[str, ...]


def gather_slices(runs: Sequence[EvaluatedRun]) -> PooledSlices:
    """Merge the slices of runs and count the correct predictions of each method."""
    row_of: dict[str, int] = {}
    for run in runs:
        for key in run.predictions.keys:
            row_of.setdefault(key, len(row_of))
    rows = [np.array([row_of[key] for key in run.predictions.keys], dtype=np.int64) for run in runs]
    persons: list[str | None] = [None] * len(row_of)
    exams: list[str | None] = [None] * len(row_of)
    label_N = np.zeros(len(row_of), dtype=np.int64)
    for run, mine in zip(runs, rows, strict=True):
        label_N[mine] = run.predictions.label_N
        for row, person, exam in zip(mine.tolist(), run.predictions.persons, run.predictions.exams, strict=True):
            persons[row], exams[row] = person, exam
    trials_N = np.bincount(np.concatenate(rows), minlength=len(row_of)).astype(np.int64)
    outcomes = {}
    for method in shared_methods(runs):
        hits = np.concatenate([mine[run.predictions.correct(method)] for run, mine in zip(runs, rows, strict=True)])
        correct_N = np.bincount(hits, minlength=len(row_of)).astype(np.int64)
        outcomes[method] = Outcomes(correct_N=correct_N, trials_N=trials_N)
    return PooledSlices(
        keys=tuple(row_of), persons=tuple(persons), exams=tuple(exams), label_N=label_N, outcomes=outcomes
    )


def shared_methods(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the methods that all runs have, in the order of the first."""
    first, *others = (run.predictions.predicted for run in runs)
    return [method for method in first if all(method in predicted for predicted in others)]


def pool(runs: Sequence[EvaluatedRun], slices: PooledSlices, expected_folds: Sequence[int]) -> Pool:
    """Pool the runs of one group.

    Args:
        runs: All runs of one split unit, data digest and loss.
        slices: Their slices, from :func:`gather_slices`.
        expected_folds: Folds of a complete cross-validation.
    """
    split_unit, digest, loss = runs[0].group
    done = {(run.result["seed"], run.result["fold"]) for run in runs}
    seeds, folds = (tuple(sorted(set(column))) for column in zip(*done, strict=True))
    groups = slices.clusters(range(len(slices.keys)))
    shared_persons = [run.result["shared_persons"] for run in runs]
    return Pool(
        split_unit=split_unit,
        source=runs[0].result.get("source"),
        data_digest=digest,
        loss=loss,
        seeds=seeds,
        folds=folds,
        expected_folds=tuple(expected_folds),
        missing=tuple((seed, fold) for seed in seeds for fold in expected_folds if (seed, fold) not in done),
        slices=len(slices.keys),
        persons=_count_patients(slices.persons),
        unit=groups.unit,
        units=groups.count,
        caution=interval_caution(groups.count),
        shared_persons=None if None in shared_persons else max(shared_persons),
        trained_slices=_largest(run.result.get("trained_slices") for run in runs),
        trained_persons=_largest(run.result.get("trained_persons") for run in runs),
        methods={method: _pooled_metrics(slices, method, groups) for method in slices.outcomes},
        by_fold=tuple(_subset(fold, [run for run in runs if run.result["fold"] == fold]) for fold in folds),
        by_seed=tuple(_subset(seed, [run for run in runs if run.result["seed"] == seed]) for seed in seeds),
        runs=tuple(run.name for run in runs),
    )


def _pooled_metrics(slices: PooledSlices, method: str, groups: Clusters) -> PooledMetrics:
    outcomes = slices.outcomes[method]
    share_N, label_N = outcomes.correct_N / outcomes.trials_N, slices.label_N
    classes = int(label_N.max()) + 1
    return PooledMetrics(
        accuracy=float(share_N.mean()),
        interval=accuracy_interval(share_N, groups),
        balanced_accuracy=balanced_accuracy(share_N, label_N),
        balanced_interval=balanced_interval(share_N, label_N, classes, groups),
    )


def _subset(number: int, runs: Sequence[EvaluatedRun]) -> SubsetAccuracy:
    slices = gather_slices(runs)
    outcomes = slices.outcomes[KNN]
    return SubsetAccuracy(
        number=number,
        slices=len(slices.keys),
        persons=_count_patients(slices.persons),
        accuracy=float(np.mean(outcomes.correct_N / outcomes.trials_N)),
    )


def _largest(counts: Iterable[int | None]) -> int | None:
    """Return the largest count; None if it is 0 as far as known but not all counts are."""
    found = list(counts)
    return max(filter(None, found), default=None if None in found else 0)


def _count_patients(persons: Sequence[str | None]) -> int | None:
    return None if None in persons else len(set(persons))
