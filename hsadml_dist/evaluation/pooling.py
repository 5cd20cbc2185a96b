"""Runs of one loss on one set of shards as one: each slice judged by the run that held it out.

Shapes: N slices, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hsadml_dist.evaluation.comparison import Outcomes
from hsadml_dist.evaluation.metrics import (
    Clusters,
    Floats,
    Interval,
    Ints,
    balanced_accuracy,
    bootstrap_interval,
    clusters,
    mean_share,
    share,
)
from hsadml_dist.evaluation.predictions import KNN, Predictions
from hsadml_dist.evaluation.result import BOOTSTRAP_SEED, MAX_CONFUSION_CLASSES


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """A run with its verdict.

    Attributes:
        name: How the user named it: for messages, and on the page.
        result: ``result.json`` as a dictionary.
        predictions: ``predictions.json``.
        folds: All folds of its shards; empty where the shards are not at hand.
        settings: The recipe's settings that make the run what it is, by dotted key.
    """

    name: str
    result: Mapping[str, Any]
    predictions: Predictions
    folds: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, str, str]:
        """What is pooled: split unit, data digest and loss."""
        return self.result["split_unit"], self.result["data_digest"], self.result["loss"]


@dataclass(frozen=True, kw_only=True)
class PooledSlices:
    """All slices of a pool, in the order in which its runs name them.

    Attributes:
        keys: Sample keys.
        persons: Keyed hashes of persons, None where a slice names none.
        exams: Keyed hashes of exams, None where a slice names none.
        label_N: True classes, int64.
        outcomes: Method to how often it was right; only methods that all runs of the pool have.
    """

    keys: tuple[str, ...]
    persons: tuple[str | None, ...]
    exams: tuple[str | None, ...]
    label_N: Ints
    outcomes: Mapping[str, Outcomes]

    def clusters(self, rows: Sequence[int]) -> Clusters:
        """Return whose the slices at ``rows`` are."""
        return clusters([self.persons[row] for row in rows], [self.exams[row] for row in rows])


@dataclass(frozen=True, kw_only=True)
class PooledMetrics:
    """A method's figures over all folds of a pool; intervals by person, None for a single person.

    Attributes:
        accuracy: Mean over slices of the share of seeds that were right.
        interval: Its interval.
        balanced_accuracy: The same averaged over classes.
        balanced_interval: Its interval; None above 256 classes too.
    """

    accuracy: float
    interval: Interval | None
    balanced_accuracy: float
    balanced_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class SubsetAccuracy:
    """The nearest neighbour's accuracy in one fold or by one seed.

    Attributes:
        number: The fold, or the seed.
        slices: Slices judged.
        persons: Their persons; None where the data name none.
        accuracy: Share of them that is right.
    """

    number: int
    slices: int
    persons: int | None
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What the runs of one loss on one set of shards say together.

    Attributes:
        split_unit: What no two folds share: person, exam or slice.
        data_digest: SHA-256 of the shards' samples table, in hex.
        loss: Name of the loss.
        seeds: Seeds that were trained.
        folds: Folds that at least one run has judged.
        expected_folds: All folds: those of the shards, or, unknown, those that any run on these shards has judged.
        missing: (seed, fold) that no run has judged.
        slices: Distinct slices judged.
        persons: Their persons; None where the data name none.
        unit: What the intervals draw as a whole: ``person``, else ``exam``, else ``slice``.
        units: How many of them.
        shared_persons: Most persons on both sides of a run; above 0 the figures are flattered. None where unknown.
        methods: Method to its figures.
        by_fold: The nearest neighbour fold by fold, seeds averaged.
        by_seed: The nearest neighbour seed by seed, folds pooled.
        runs: Names of the runs.
    """

    split_unit: str
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
    shared_persons: int | None
    methods: Mapping[str, PooledMetrics]
    by_fold: tuple[SubsetAccuracy, ...]
    by_seed: tuple[SubsetAccuracy, ...]
    runs: tuple[str, ...]


def gather_slices(runs: Sequence[EvaluatedRun]) -> PooledSlices:
    """Return the slices of runs, each once, with how often each method was right on it."""
    place: dict[str, int] = {}
    for run in runs:
        for key in run.predictions.keys:
            place.setdefault(key, len(place))
    rows = [np.array([place[key] for key in run.predictions.keys], dtype=np.int64) for run in runs]
    persons: list[str | None] = [None] * len(place)
    exams: list[str | None] = [None] * len(place)
    label_N = np.zeros(len(place), dtype=np.int64)
    for run, mine in zip(runs, rows, strict=True):
        label_N[mine] = run.predictions.label_N
        for row, person, exam in zip(mine.tolist(), run.predictions.persons, run.predictions.exams, strict=True):
            persons[row], exams[row] = person, exam
    trials_N = np.bincount(np.concatenate(rows), minlength=len(place)).astype(np.int64)
    outcomes = {method: Outcomes(correct_N=_right(runs, rows, method), trials_N=trials_N) for method in shared(runs)}
    return PooledSlices(
        keys=tuple(place), persons=tuple(persons), exams=tuple(exams), label_N=label_N, outcomes=outcomes
    )


def shared(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the methods that all runs have, in the order of the first."""
    return [
        method for method in runs[0].predictions.predicted if all(method in run.predictions.predicted for run in runs)
    ]


def pool(runs: Sequence[EvaluatedRun], slices: PooledSlices, expected_folds: Sequence[int], resamples: int) -> Pool:
    """Return what the runs of one group say together.

    Args:
        runs: All runs of one split unit, data digest and loss.
        slices: What :func:`gathered` makes of them.
        expected_folds: The folds that a whole cross-validation has.
        resamples: Number of bootstrap samples.
    """
    split_unit, digest, loss = runs[0].group
    done = {(run.result["seed"], run.result["fold"]) for run in runs}
    seeds, folds = (tuple(sorted(set(column))) for column in zip(*done, strict=True))
    of = slices.clusters(range(len(slices.keys)))
    unknown = any(run.result["shared_persons"] is None for run in runs)
    return Pool(
        split_unit=split_unit,
        data_digest=digest,
        loss=loss,
        seeds=seeds,
        folds=folds,
        expected_folds=tuple(expected_folds),
        missing=tuple((seed, fold) for seed in seeds for fold in expected_folds if (seed, fold) not in done),
        slices=len(slices.keys),
        persons=_persons(slices.persons),
        unit=of.unit,
        units=of.count,
        shared_persons=None if unknown else max(run.result["shared_persons"] for run in runs),
        methods={method: _merit(slices, method, of, resamples) for method in slices.outcomes},
        by_fold=tuple(_part(fold, [run for run in runs if run.result["fold"] == fold]) for fold in folds),
        by_seed=tuple(_part(seed, [run for run in runs if run.result["seed"] == seed]) for seed in seeds),
        runs=tuple(run.name for run in runs),
    )


def _right(runs: Sequence[EvaluatedRun], rows: Sequence[Ints], method: str) -> Ints:
    hits = np.concatenate([mine[run.predictions.correct(method)] for run, mine in zip(runs, rows, strict=True)])
    return np.bincount(hits, minlength=1 + max(int(mine.max()) for mine in rows)).astype(np.int64)


def _merit(slices: PooledSlices, method: str, of: Clusters, resamples: int) -> PooledMetrics:
    outcomes = slices.outcomes[method]
    value_N = outcomes.correct_N / outcomes.trials_N
    plain = np.stack([value_N, np.ones_like(value_N)], axis=1)
    classes = int(slices.label_N.max()) + 1
    spans = {"resamples": resamples, "seed": BOOTSTRAP_SEED}
    balanced = None
    if classes <= MAX_CONFUSION_CLASSES:
        balanced = bootstrap_interval(_class_tally(value_N, slices.label_N, classes), of, mean_share, **spans)
    return PooledMetrics(
        accuracy=float(value_N.mean()),
        interval=bootstrap_interval(plain, of, share, **spans),
        balanced_accuracy=balanced_accuracy(value_N, slices.label_N),
        balanced_interval=balanced,
    )


def _class_tally(value_N: Floats, label_N: Ints, classes: int) -> Floats:
    """Return what each slice adds to ``scores.mean_share`` when it is right in part: (N, 2 C)."""
    member_NC = np.eye(classes)[label_N]
    return np.concatenate([member_NC * value_N[:, None], member_NC], axis=1)


def _part(number: int, runs: Sequence[EvaluatedRun]) -> SubsetAccuracy:
    slices = gather_slices(runs)
    outcomes = slices.outcomes[KNN]
    return SubsetAccuracy(
        number=number,
        slices=len(slices.keys),
        persons=_persons(slices.persons),
        accuracy=float(np.mean(outcomes.correct_N / outcomes.trials_N)),
    )


def _persons(persons: Sequence[str | None]) -> int | None:
    return None if any(person is None for person in persons) else len(set(persons))
