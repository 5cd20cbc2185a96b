"""Cross-validation over runs: folds and seeds pooled, losses compared on the same slices, splits side by side.

Nothing here reads or writes a file. Shapes: N slices.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.comparison import Outcomes, PairedComparison, compare
from hsadml_dist.evaluation.metrics import LEVEL
from hsadml_dist.evaluation.pooling import EvaluatedRun, Pool, PooledSlices, gather_slices, pool, shared
from hsadml_dist.evaluation.predictions import HEAD, KNN, RAW_PIXELS, Predictions
from hsadml_dist.evaluation.result import BOOTSTRAP_SEED

SCHEMA_VERSION = 1
COMBINED_NAME = "combined.json"
BASELINE = "softmax"
"""The loss that the others are compared with: second in each comparison that it takes part in."""
UNITS = ("person", "exam", "slice")
"""Split units from the strictest to the leakiest."""
MAY_DIFFER = ("data.shards", "data.fold", "loss.name", "train.seed")
"""Settings that runs are compared over."""
MAX_NAMES_LENGTH = 80
"""Letters of class names in a message."""

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
    """Two methods on the same slices.

    Attributes:
        kind: ``losses``: two losses on the same shards; ``control``: a loss against the raw pixels on the same
            shards; ``splits``: one loss on slices that are split in two ways, the leakier first.
        first: The side whose lead is measured.
        second: The other.
        test: See :class:`~hsadml_dist.evaluation.comparison.PairedComparison`.
        adjusted_p: The permutation p after Holm's correction for all comparisons of losses by the same method on the
            same shards (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70); None for other kinds.
    """

    kind: str
    first: ComparedMethod
    second: ComparedMethod
    test: PairedComparison
    adjusted_p: float | None = None


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """A run that went in."""

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
    knn_accuracy: float


@dataclass(frozen=True, kw_only=True)
class CombinedResult:
    """What several runs say together; ``combined.json``.

    Attributes:
        label: What a class is: ``class`` or ``person``.
        classes: Class names in the order of their labels.
        model: Name of the backbone of all runs.
        level: Share of the bootstrap distribution inside each interval.
        resamples: Number of bootstrap samples of each interval.
        pools: One a split unit, data digest and loss; the strictest split first, the baseline last.
        comparisons: Of losses, against the control, and of splits.
        differing: Settings that differ between runs beside loss, seed, fold and shards: key to value to runs.
        left_out: Methods that not all runs of a pool have.
        sources: The runs.
        schema_version: Version of these fields.
    """

    label: str
    classes: tuple[str, ...]
    model: str
    level: float
    resamples: int
    pools: tuple[Pool, ...]
    comparisons: tuple[Comparison, ...]
    differing: Mapping[str, Mapping[str, tuple[str, ...]]]
    left_out: tuple[str, ...]
    sources: tuple[SourceRun, ...]
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and texts, as they stand in ``combined.json``."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return the text of ``combined.json``; floats keep all their digits."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def combine(runs: Sequence[EvaluatedRun], *, resamples: int) -> CombinedResult:
    """Return what the runs say together.

    Args:
        runs: At least one.
        resamples: Number of bootstrap samples of each interval.

    Raises:
        DataError: Runs that do not fit: other classes or backbones, a fold judged twice by one loss and seed, a slice
            in two folds or with two labels, or a verdict that is not of its predictions.
    """
    check(runs)
    groups: dict[Group, list[EvaluatedRun]] = {}
    for run in sorted(runs, key=_order):
        groups.setdefault(run.group, []).append(run)
    slices = {group: gather_slices(members) for group, members in groups.items()}
    pools = tuple(
        pool(members, slices[group], _expected(group[1], runs), resamples) for group, members in groups.items()
    )
    return CombinedResult(
        label=runs[0].result.get("label", "class"),
        classes=runs[0].predictions.classes,
        model=runs[0].result["model"],
        level=LEVEL,
        resamples=resamples,
        pools=pools,
        comparisons=_adjusted(list(_comparisons(slices, resamples))),
        differing=differing(runs),
        left_out=_left_out(groups.values()),
        sources=tuple(_source(run) for members in groups.values() for run in members),
    )


def check(runs: Sequence[EvaluatedRun]) -> None:
    """See :func:`combine`."""
    for run in runs:
        if not agree(run.result, run.predictions):
            raise DataError(f"{run.name}: result.json and predictions.json are of two verdicts; judge the run anew")
        _check_same(runs[0], run, "classes", *(_listed(one.predictions.classes) for one in (runs[0], run)))
        _check_same(runs[0], run, "model", runs[0].result["model"], run.result["model"])
    _check_once(runs)
    _check_labels(runs)


def differing(runs: Sequence[EvaluatedRun]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the settings that differ where they should not: key to value to the runs that have it."""
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


def agree(result: Mapping[str, Any], said: Predictions) -> bool:
    """Return whether two files are of one verdict: they are written in turn, and a crash may come in between."""
    mine = (len(said), float(np.mean(said.correct(KNN))), list(said.classes))
    return mine == (result["slices"], result["knn_accuracy"], list(result["classes"]))


def _listed(names: Sequence[str]) -> str:
    """Return the names, cut short to what a line holds; their number and checksum tell apart what is cut."""
    text = ", ".join(names)
    if len(text) <= MAX_NAMES_LENGTH:
        return text
    return f"{text[:MAX_NAMES_LENGTH]}... ({len(names)}, CRC {zlib.crc32(text.encode()):08x})"


def _check_same(first: EvaluatedRun, run: EvaluatedRun, what: str, wanted: str, found: str) -> None:
    if wanted != found:
        raise DataError(f"{run.name}: {what} {found}, {first.name} has {wanted}: combine runs that share their {what}")


def _check_once(runs: Iterable[EvaluatedRun]) -> None:
    folds: dict[tuple[Group, int, int], EvaluatedRun] = {}
    held: dict[tuple[Group, int, str], EvaluatedRun] = {}
    for run in runs:
        seed, fold = run.result["seed"], run.result["fold"]
        other = folds.setdefault((run.group, seed, fold), run)
        if other is not run:
            which = f"loss {run.result['loss']}, seed {seed}, fold {fold} of the same shards"
            raise DataError(f"{other.name} and {run.name} are both {which}: leave one out")
        for key in run.predictions.keys:
            other = held.setdefault((run.group, seed, key), run)
            if other is not run:
                raise DataError(f"{other.name} and {run.name} have judged the same slice {key}: folds must not overlap")


def _check_labels(runs: Iterable[EvaluatedRun]) -> None:
    labels: dict[str, tuple[int, EvaluatedRun]] = {}
    for run in runs:
        for key, label in zip(run.predictions.keys, run.predictions.label_N.tolist(), strict=True):
            known, other = labels.setdefault(key, (label, run))
            if known != label:
                raise DataError(f"{other.name} and {run.name}: slice {key} has two classes: not the same data")


def _order(run: EvaluatedRun) -> tuple[object, ...]:
    """Sort pools: strict splits first, the baseline last among the losses; within a pool by seed and fold."""
    unit, digest, loss = run.group
    return UNITS.index(unit), digest, loss == BASELINE, loss, run.result["seed"], run.result["fold"]


def _expected(digest: str, runs: Iterable[EvaluatedRun]) -> list[int]:
    mine = [run for run in runs if run.result["data_digest"] == digest]
    return sorted({fold for run in mine for fold in (*run.folds, run.result["fold"])})


def _left_out(groups: Iterable[Sequence[EvaluatedRun]]) -> tuple[str, ...]:
    missing: dict[str, None] = {}
    for members in groups:
        every = shared(members)
        missing |= {method: None for run in members for method in run.predictions.predicted if method not in every}
    return tuple(missing)


def _comparisons(slices: Mapping[Group, PooledSlices], resamples: int) -> Iterator[Comparison]:
    for first, second in itertools.combinations(slices, 2):
        if first[:2] == second[:2]:
            for method in (KNN, HEAD):
                yield from _compared("losses", (slices, resamples), (first, method), (second, method))
    for group in slices:
        yield from _compared("control", (slices, resamples), (group, KNN), (group, RAW_PIXELS))
    for first, second in itertools.combinations(slices, 2):
        if first[0] != second[0] and first[2] == second[2]:
            for method in (KNN, RAW_PIXELS):
                yield from _compared("splits", (slices, resamples), (second, method), (first, method))


def _compared(
    kind: str, among: tuple[Mapping[Group, PooledSlices], int], first: tuple[Group, str], second: tuple[Group, str]
) -> Iterator[Comparison]:
    """Yield the comparison of two sides, (group, method) each, on the slices that both have judged; none, nothing."""
    slices, resamples = among
    one, two = slices[first[0]], slices[second[0]]
    place = {key: row for row, key in enumerate(two.keys)}
    rows = [(row, place[key]) for row, key in enumerate(one.keys) if key in place]
    if not rows or first[1] not in one.outcomes or second[1] not in two.outcomes:
        return
    mine, other = (list(column) for column in zip(*rows, strict=True))
    sides = _at(one.outcomes[first[1]], mine), _at(two.outcomes[second[1]], other)
    test = compare(*sides, one.clusters(mine), resamples=resamples, seed=BOOTSTRAP_SEED)
    yield Comparison(kind=kind, first=_side(*first), second=_side(*second), test=test)


def _at(outcomes: Outcomes, rows: Sequence[int]) -> Outcomes:
    return Outcomes(correct_N=outcomes.correct_N[rows], trials_N=outcomes.trials_N[rows])


def _side(group: Group, method: str) -> ComparedMethod:
    return ComparedMethod(split_unit=group[0], data_digest=group[1], loss=group[2], method=method)


def _adjusted(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    families: dict[tuple[str, str, str], list[int]] = {}
    for place, one in enumerate(comparisons):
        if one.kind == "losses":
            family = (one.first.split_unit, one.first.data_digest, one.first.method)
            families.setdefault(family, []).append(place)
    adjusted: dict[int, float] = {}
    for places in families.values():
        adjusted |= dict(zip(places, holm([comparisons[place].test.permutation.p for place in places]), strict=True))
    return tuple(dataclasses.replace(one, adjusted_p=adjusted.get(place)) for place, one in enumerate(comparisons))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return each p times the number of those not smaller, at most 1 and in the order of the p."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = least
    return adjusted


def _source(run: EvaluatedRun) -> SourceRun:
    result = run.result
    same = ("split_unit", "data_digest", "loss", "seed", "fold", "model", "chosen_by", "slices", "knn_accuracy")
    checkpoint = {"checkpoint": result["checkpoint"]["name"], "step": result["checkpoint"]["step"]}
    return SourceRun(name=run.name, **{key: result[key] for key in same}, **checkpoint)
