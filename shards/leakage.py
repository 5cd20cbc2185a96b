"""Measure leakage between folds: accuracy of the raw-pixel nearest neighbour in folds by patient, by exam and by slice.

Nothing is learnt. If slices of one patient are on both sides of a split, this baseline alone reaches 90 % on many
public data sets. The gap between the figures shows how much a split by slice inflates the result of any method.

Shapes: N slices, P = SIDE * SIDE pixels, G gallery slices, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hsadml_dist.data.index import SPLIT_UNITS, SampleRow, ShardIndex
from hsadml_dist.shards.split import balance_folds, seeded_hash

SIDE = 64
MAX_SLICES = 4096
"""Larger data sets are subsampled by whole groups to about this many slices: the search is quadratic."""

BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class LeakageReport:
    """By split unit, the fraction of slices whose nearest slice in other folds, in raw pixels, has the same class."""

    accuracy: dict[str, float]
    slices: int
    side: int = SIDE


def make_thumbnail(image_HW: np.ndarray) -> np.ndarray:
    """Return the area-averaged thumbnail (P,), uint8, stretched to 256 grey levels from its minimum to its maximum."""
    small = np.asarray(Image.fromarray(image_HW.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX))
    low, high = float(small.min()), float(small.max())
    return np.rint((small.ravel() - low) * (255 / (high - low or 1))).astype(np.uint8)


def select_slices(index: ShardIndex) -> list[int]:
    """Return the positions, ascending, of the slices to compare: whole groups, about :data:`MAX_SLICES` slices."""
    groups: dict[str, list[int]] = {}
    for position, row in enumerate(index.samples):
        groups.setdefault(_group(row, index.split_unit), []).append(position)
    chosen: list[int] = []
    for name in sorted(groups, key=lambda name: seeded_hash(index.seed, "leak", name)):
        if len(chosen) < MAX_SLICES:
            chosen.extend(groups[name])
    return sorted(chosen)


def measure_leakage(rows: Sequence[SampleRow], pixels_NP: np.ndarray, index: ShardIndex) -> LeakageReport:
    """Evaluate the folds of ``index``, and folds assigned in the same way by each other unit that all samples name.

    ``rows`` are the slices to compare, and ``pixels_NP`` their thumbnails, uint8.
    """
    label_N = np.array([row.label for row in rows])
    folds = _folds_by_unit(rows, index)
    correct = dict.fromkeys(folds, 0)
    for start, distance_QG in _distances(pixels_NP):
        queries = slice(start, start + len(distance_QG))
        for unit, fold_N in folds.items():
            same_fold = fold_N[queries, None] == fold_N[None, :]
            nearest_Q = np.where(same_fold, np.inf, distance_QG).argmin(axis=1)
            correct[unit] += int((label_N[nearest_Q] == label_N[queries]).sum())
    return LeakageReport(accuracy={unit: count / len(rows) for unit, count in correct.items()}, slices=len(rows))


def _folds_by_unit(rows: Sequence[SampleRow], index: ShardIndex) -> Mapping[str, np.ndarray]:
    classes = [str(row.label) for row in rows]
    folds: dict[str, np.ndarray] = {}
    for unit in SPLIT_UNITS:
        if unit == index.split_unit:
            folds[unit] = np.array([row.fold for row in rows])
        elif all(getattr(row, unit, "") is not None for row in rows):
            groups = [_group(row, unit) for row in rows]
            folds[unit] = np.array(balance_folds(groups, classes, index.folds, index.seed))
    return folds


def _group(row: SampleRow, unit: str) -> str:
    return row.key if unit == "slice" else str(getattr(row, unit))


def _distances(pixels_NP: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, (Q, G)) in blocks: half the squared distance, up to a term that depends on the query alone.

    Grey levels are integers in double precision, so no sum is rounded and the result depends on no library or number
    of threads.
    """
    points = pixels_NP.astype(np.float64)
    half_G = (points * points).sum(axis=1) / 2
    for start in range(0, len(points), BLOCK):
        yield start, half_G - points[start : start + BLOCK] @ points.T
