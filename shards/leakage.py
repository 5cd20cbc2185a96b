"""What no learning reaches: each slice's nearest other in raw pixels, for folds by person, by exam and by slice.

Where slices of one person lie on both sides of a split, this alone reaches nine tenths on many public sets. The gap
between the figures is what a split by slice would add to any method's result without any merit of the method.

Shapes: N slices, P = SIDE * SIDE pixels, R references, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hsadml_dist.data.index import SPLIT_UNITS, SampleRow, ShardIndex
from hsadml_dist.shards.split import balance, seeded_hash

SIDE = 64
MOST_SLICES = 4096
"""Of more slices, whole persons are drawn until there are as many: the search takes time with their square."""

BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class LeakageReport:
    """The accuracy of raw pixels without learning.

    Attributes:
        accuracy: Split unit to the share of slices whose nearest slice of other folds is of their class.
        slices: Slices that took part.
        side: Side of the thumbnails in pixels.
    """

    accuracy: dict[str, float]
    slices: int
    side: int = SIDE


def thumbnail(image_HW: np.ndarray) -> np.ndarray:
    """Return the area-averaged thumbnail (P,) with 256 grey levels from darkest to brightest, uint8."""
    small = np.asarray(Image.fromarray(image_HW.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX))
    low, high = float(small.min()), float(small.max())
    return np.rint((small.ravel() - low) * (255 / (high - low or 1))).astype(np.uint8)


def select_slices(index: ShardIndex) -> list[int]:
    """Return the positions, ascending, of the slices that take part: whole units, at most about :data:`MOST_SLICES`."""
    names = [_unit(row, index.split_unit) for row in index.samples]
    chosen: list[int] = []
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    for name in sorted(places, key=lambda name: seeded_hash(index.seed, "leak", name)):
        if len(chosen) < MOST_SLICES:
            chosen.extend(places[name])
    return sorted(chosen)


def measure_leakage(rows: Sequence[SampleRow], pixels_NP: np.ndarray, index: ShardIndex) -> LeakageReport:
    """Judge the index's own folds, and folds drawn in the same way by every other unit that the samples name.

    Args:
        rows: The slices that take part.
        pixels_NP: Their thumbnails, uint8.
        index: Whose folds, seed and unit they are.
    """
    labels = np.array([row.label for row in rows])
    folds = _foldings(rows, index)
    right = {unit: 0 for unit in folds}
    for start, distance_QR in _distances(pixels_NP):
        queries = slice(start, start + len(distance_QR))
        for unit, fold_N in folds.items():
            own = fold_N[queries, None] == fold_N[None, :]
            nearest = np.where(own, np.inf, distance_QR).argmin(axis=1)
            right[unit] += int((labels[nearest] == labels[queries]).sum())
    return LeakageReport(accuracy={unit: count / len(rows) for unit, count in right.items()}, slices=len(rows))


def _foldings(rows: Sequence[SampleRow], index: ShardIndex) -> Mapping[str, np.ndarray]:
    classes = [str(row.label) for row in rows]
    found: dict[str, np.ndarray] = {}
    for unit in SPLIT_UNITS:
        if unit == index.split_unit:
            found[unit] = np.array([row.fold for row in rows])
        elif all(getattr(row, unit, "") is not None for row in rows):
            names = [_unit(row, unit) for row in rows]
            found[unit] = np.array(balance(names, classes, index.folds, index.seed))
    return found


def _unit(row: SampleRow, unit: str) -> str:
    return row.key if unit == "slice" else str(getattr(row, unit))


def _distances(pixels_NP: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, (Q, R)) in blocks: half the squared distance, up to a term of the query alone.

    Whole grey levels in double precision: no sum rounds, so that the figures depend on no library or thread count.
    """
    points = pixels_NP.astype(np.float64)
    half_R = (points * points).sum(axis=1) / 2
    for start in range(0, len(points), BLOCK):
        yield start, half_R - points[start : start + BLOCK] @ points.T
