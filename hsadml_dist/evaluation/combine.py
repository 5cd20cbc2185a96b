"""Cross-validation over runs: pool folds and seeds, and compare losses, splits and the baseline on the same slices.

This module reads and writes no files.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsadml_dist.errors import DataError, TrainedDataError
from hsadml_dist.evaluation.comparison import Outcomes, PairedComparison, compare
from hsadml_dist.evaluation.intervals import LEVEL, METHOD
from hsadml_dist.evaluation.pooling import EvaluatedRun, Pool, PooledSlices, gather_slices, pool, shared_methods
from hsadml_dist.evaluation.result import HEAD, KNN, PERMUTATION_SEED, RAW_PIXELS, JsonRecord, Predictions

COMBINED_SCHEMA_VERSION = 1
COMBINED_NAME = "combined.json"
BASELINE = "softmax"
"""The loss that the others are compared with; it is the second side of its comparisons."""
UNITS = ("person", "exam", "slice")
"""Split units from the strictest to the leakiest."""
MAY_DIFFER = ("data.shards", "data.fold", "loss.name", "train.seed")
"""Settings that runs may differ in without a remark."""
MAX_NAMES_LENGTH = 80
"""Characters of class names in a message."""

Group = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class ComparedMethod:
    """One side of a comparison: a method of a pool."""

    split_unit: str
    data_digest: str
    loss: str
    method: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two methods compared on the same slices.

    Attributes:
        kind: ``losses``: two losses on the same shards; ``control``: a loss against raw pixels on the same shards;
            ``splits``: one loss on slices that are split in two ways, the leakier split first.
        first: The side whose lead over the second is measured.
        adjusted_p: The permutation p-value after Holm's correction for all comparisons of losses by the same method on
            the same shards (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70); None for other kinds.
    """

    kind: str
    first: ComparedMethod
    second: ComparedMethod
    test: PairedComparison
    adjusted_p: float | None = None


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """A run that was combined; ``trained_slices`` and ``trained_persons`` as in ``result.json``."""

    name: str
    split_unit: str
    data_digest: str
    loss: str
    seed: int
    fold: int
    model: str
    checkpoint: str
    step: int
    chosen_by: str
    slices: int
    trained_slices: int | None
    trained_persons: int | None
    knn_accuracy: float


@dataclass(frozen=True, kw_only=True)
class CombinedResult(JsonRecord):
    """Combined result of several runs; ``combined.json``.

    Attributes:
        label: ``class``, or ``person`` if each patient is a class.
        classes: Class names in label order.
        model: Name of the backbone of all runs.
        level: Share of such intervals that contain the true value, approximately.
        interval_method: Name of the method of the intervals.
        pools: One for each split unit, data digest and loss; the strictest split first, the baseline last.
        comparisons: Between losses, with raw pixels, and between splits.
        differing: Settings that differ between runs, except loss, seed, fold and shards: key to value to runs.
        left_out: Methods that are missing in some runs of a pool.
        schema_version: Version of these fields.
    """

    label: str
    classes: tuple[str, ...]
    model: str
    level: float
    interval_method: str
    pools: tuple[Pool, ...]
    comparisons: tuple[Comparison, ...]
    differing: Mapping[str, Mapping[str, tuple[str, ...]]]
    left_out: tuple[str, ...]
    sources: tuple[SourceRun, ...]
    schema_version: int = COMBINED_SCHEMA_VERSION


def combine(runs: Sequence[EvaluatedRun], *, allow_trained: bool = False) -> CombinedResult:
    """Pool at least one run and compare the pools.

    Raises:
        DataError: The runs do not fit together: different classes or backbones, a fold evaluated twice by one loss and
            seed, a slice in two folds or with two labels, or a result that does not belong to its predictions.
        TrainedDataError: A run was trained on slices of its test fold or, if patients are kept apart, on its patients;
            ``allow_trained`` allows it.
    """
    check_compatible(runs)
    if not allow_trained:
        _refuse_trained(runs)
    groups: dict[Group, list[EvaluatedRun]] = {}
    for run in sorted(runs, key=_sort_key):
        groups.setdefault(run.group, []).append(run)
    slices = {group: gather_slices(members) for group, members in groups.items()}
    folds: dict[str, set[int]] = {}
    for run in runs:
        folds.setdefault(run.result["data_digest"], set()).update(run.folds, [run.result["fold"]])
    return CombinedResult(
        label=runs[0].result.get("label", "class"),
        classes=runs[0].predictions.classes,
        model=runs[0].result["model"],
        level=LEVEL,
        interval_method=METHOD,
        pools=tuple(pool(members, slices[group], sorted(folds[group[1]])) for group, members in groups.items()),
        comparisons=_with_adjusted_p(list(_comparisons(slices))),
        differing=differing_settings(runs),
        left_out=_missing_methods(groups.values()),
        sources=tuple(_source(run) for members in groups.values() for run in members),
    )


def check_compatible(runs: Sequence[EvaluatedRun]) -> None:
    """Check that runs can be combined.

    Raises:
        DataError: See :func:`combine`.
    """
    for run in runs:
        if not belong_together(run.result, run.predictions):
            raise DataError(
                f"{run.name}: result.json and predictions.json are of two evaluations; evaluate the run again"
            )
        _check_same(runs[0], run, "classes", *(_shorten(one.predictions.classes) for one in (runs[0], run)))
        _check_same(runs[0], run, "model", runs[0].result["model"], run.result["model"])
    _check_unique_folds(runs)
    labels: dict[str, tuple[int, EvaluatedRun]] = {}
    for run in runs:
        for key, label in zip(run.predictions.keys, run.predictions.label_N.tolist(), strict=True):
            known, other = labels.setdefault(key, (label, run))
            if known != label:
                raise DataError(f"{other.name} and {run.name}: slice {key} has two classes: not the same data")


def _refuse_trained(runs: Iterable[EvaluatedRun]) -> None:
    for run in runs:
        result = run.result
        keeps_apart = result["split_unit"] == "person" and result.get("label") != "person"
        slices, persons = result.get("trained_slices") or 0, (keeps_apart and result.get("trained_persons")) or 0
        if slices or persons:
            raise TrainedDataError(
                f"{run.name}: the run was trained on {slices} slices and {persons} patients of its test fold, so the "
                "figures would not be of unseen data; leave the run out, or allow it with --allow-trained, which marks "
                "every figure"
            )


def differing_settings(runs: Sequence[EvaluatedRun]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the settings that differ but should not: key to value to the runs that have it."""
    known = [run for run in runs if run.settings]
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for key in sorted({key for run in known for key in run.settings}.difference(MAY_DIFFER)):
        values: dict[str, tuple[str, ...]] = {}
        for run in known:
            value = str(run.settings.get(key))
            values[value] = (*values.get(value, ()), run.name)
        if len(values) > 1:
            found[key] = values
    return found


def belong_together(result: Mapping[str, Any], predictions: Predictions) -> bool:
    """Return whether both files are of one evaluation: they are written in turn, and a crash may come in between."""
    facts = (len(predictions), float(np.mean(predictions.correct(KNN))), list(predictions.classes))
    return facts == (result["slices"], result["knn_accuracy"], list(result["classes"]))


def _shorten(names: Sequence[str]) -> str:
    """Return the names in at most a line; count and checksum distinguish lists that are cut."""
    text = ", ".join(names)
    if len(text) <= MAX_NAMES_LENGTH:
        return text
    return f"{text[:MAX_NAMES_LENGTH]}... ({len(names)}, CRC {zlib.crc32(text.encode()):08x})"


def _check_same(first: EvaluatedRun, run: EvaluatedRun, what: str, expected: str, found: str) -> None:
    if expected != found:
        raise DataError(f"{run.name}: {what} {found}, but {first.name} has {expected}; combine runs of the same {what}")


def _check_unique_folds(runs: Iterable[EvaluatedRun]) -> None:
    folds: dict[tuple[Group, int, int], EvaluatedRun] = {}
    owners: dict[tuple[Group, int, str], EvaluatedRun] = {}
    for run in runs:
        seed, fold = run.result["seed"], run.result["fold"]
        other = folds.setdefault((run.group, seed, fold), run)
        if other is not run:
            which = f"loss {run.result['loss']}, seed {seed}, fold {fold} of the same shards"
            raise DataError(f"{other.name} and {run.name} are both {which}: leave one out")
        for key in run.predictions.keys:
            other = owners.setdefault((run.group, seed, key), run)
            if other is not run:
                raise DataError(f"{other.name} and {run.name} both contain slice {key}: folds must not overlap")


def _sort_key(run: EvaluatedRun) -> tuple[object, ...]:
    """Sort pools: strict splits first, the baseline last among the losses; within a pool by seed and fold."""
    unit, digest, loss = run.group
    return UNITS.index(unit), digest, loss == BASELINE, loss, run.result["seed"], run.result["fold"]


def _missing_methods(groups: Iterable[Sequence[EvaluatedRun]]) -> tuple[str, ...]:
    missing: dict[str, None] = {}
    for members in groups:
        shared = shared_methods(members)
        missing |= {method: None for run in members for method in run.predictions.predicted if method not in shared}
    return tuple(missing)


def _comparisons(slices: Mapping[Group, PooledSlices]) -> Iterator[Comparison]:
    for first, second in itertools.combinations(slices, 2):
        if first[:2] == second[:2]:
            for method in (KNN, HEAD):
                yield from _compare_pools("losses", slices, (first, method), (second, method))
    for group in slices:
        yield from _compare_pools("control", slices, (group, KNN), (group, RAW_PIXELS))
    for first, second in itertools.combinations(slices, 2):
        if first[0] != second[0] and first[2] == second[2]:
            for method in (KNN, RAW_PIXELS):
                yield from _compare_pools("splits", slices, (second, method), (first, method))


def _compare_pools(
    kind: str,
    slices: Mapping[Group, PooledSlices],
    first: tuple[Group, str],
    second: tuple[Group, str],
) -> Iterator[Comparison]:
    """Yield the comparison of two sides (group, method) on the slices that both contain, if there are any."""
    one, two = slices[first[0]], slices[second[0]]
    row_of = {key: row for row, key in enumerate(two.keys)}
    rows = [(row, row_of[key]) for row, key in enumerate(one.keys) if key in row_of]
    if not rows or first[1] not in one.outcomes or second[1] not in two.outcomes:
        return
    rows_one, rows_two = (list(column) for column in zip(*rows, strict=True))
    sides = _select(one.outcomes[first[1]], rows_one), _select(two.outcomes[second[1]], rows_two)
    test = compare(*sides, one.clusters(rows_one), seed=PERMUTATION_SEED)
    yield Comparison(kind=kind, first=_side(*first), second=_side(*second), test=test)


def _select(outcomes: Outcomes, rows: Sequence[int]) -> Outcomes:
    return Outcomes(correct_N=outcomes.correct_N[rows], trials_N=outcomes.trials_N[rows])


def _side(group: Group, method: str) -> ComparedMethod:
    return ComparedMethod(split_unit=group[0], data_digest=group[1], loss=group[2], method=method)


def _with_adjusted_p(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    families: dict[tuple[str, str, str], list[int]] = {}
    for number, one in enumerate(comparisons):
        if one.kind == "losses":
            family = (one.first.split_unit, one.first.data_digest, one.first.method)
            families.setdefault(family, []).append(number)
    adjusted: dict[int, float] = {}
    for members in families.values():
        p_values = [comparisons[number].test.permutation.p for number in members]
        adjusted |= dict(zip(members, holm(p_values), strict=True))
    return tuple(dataclasses.replace(one, adjusted_p=adjusted.get(number)) for number, one in enumerate(comparisons))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method."""
    adjusted, lower = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        lower = max(lower, min(1.0, p_values[number] * (len(p_values) - rank)))
        adjusted[number] = lower
    return adjusted


def _source(run: EvaluatedRun) -> SourceRun:
    result = run.result
    same = ("split_unit", "data_digest", "loss", "seed", "fold", "model", "chosen_by", "slices", "knn_accuracy")
    checkpoint = {"checkpoint": result["checkpoint"]["name"], "step": result["checkpoint"]["step"]}
    trained: dict[str, Any] = {key: result.get(key) for key in ("trained_slices", "trained_persons")}
    return SourceRun(name=run.name, **{key: result[key] for key in same}, **trained, **checkpoint)
