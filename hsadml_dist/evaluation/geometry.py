"""Angles within and between classes on the sphere, the spread of the class centres, and their energy.

Angles are whole numbers of millionths of a degree, from exact products (see :mod:`hsadml_dist.evaluation.knn`). Sums
of them are exact in any order, so that no figure depends on threads, block size or the machine's matrix product.

Shapes: N slices, D components, C classes, P pairs of centres, K sampled slices, U classes among them, M and R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.knn import round_to_grid
from hsadml_dist.evaluation.metrics import Floats, Ints, stratified

DEGREE = 10**6
"""Millionths in a degree: the embeddings' own precision."""

BLOCK_ELEMENTS = 1 << 21


def gridded(rows_MD: npt.NDArray[np.floating]) -> Floats:
    """Return unit rows on the grid on which products are exact.

    Raises:
        DataError: A component that is not finite.
    """
    return round_to_grid(torch.tensor(rows_MD)).numpy()


def between(gridded_MD: Floats, gridded_RD: Floats) -> Ints:
    """Return the angles (M, R) between rows on the grid, in millionths of a degree.

    From the lengths of difference and sum, because the arc cosine of a number near 1 keeps only half the digits.
    """
    dot_MR = gridded_MD @ gridded_RD.T
    square_M1, square_R = (gridded_MD * gridded_MD).sum(axis=1)[:, None], (gridded_RD * gridded_RD).sum(axis=1)
    apart_MR = (square_M1 - dot_MR) + (square_R - dot_MR)
    along_MR = (square_M1 + dot_MR) + (square_R + dot_MR)
    # Two rows of zeros: as far apart as along, which is 90 degrees.
    nowhere_MR = apart_MR + along_MR == 0
    apart_MR[nowhere_MR] = along_MR[nowhere_MR] = 1
    return np.rint(np.degrees(2 * np.arctan2(np.sqrt(apart_MR), np.sqrt(along_MR))) * DEGREE).astype(np.int64)


def blocks(rows: int, width: int) -> list[tuple[int, int]]:
    """Return the ends of runs of rows that are few enough for the memory at ``width`` numbers a row."""
    step = max(1, BLOCK_ELEMENTS // max(width, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


MAX_CENTRES = 4096
"""Classes up to which the pairs of centres are measured: eight million pairs, some seconds."""

MAX_NEAREST_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class CentreEnergy:
    """Hyperspherical energy of the centres, mean over pairs; less is more evenly spread.

    Source: Liu et al., Learning towards Minimum Hyperspherical Energy, NeurIPS 2018: the variant with angles in place
    of chords, divided by the number of pairs. Angles are in radians.

    Attributes:
        s0: Mean of the logarithm of 1 / angle.
        s1: Mean of 1 / angle.
        s2: Mean of 1 / angle^2.
    """

    s0: float
    s1: float
    s2: float


@dataclass(frozen=True, kw_only=True)
class CentrePair:
    """Two centres, by their labels, and the degrees between them."""

    first: int
    second: int
    angle: float


@dataclass(frozen=True, kw_only=True)
class CentreSpread:
    """Angles between class centres, in degrees.

    Attributes:
        mean: Over all pairs.
        most: The widest pair.
        neighbour: From a centre to the one nearest to it, mean over the centres.
        nearest: The closest pairs, at most :data:`MAX_NEAREST_PAIRS`, closest first; of equal ones the lower labels first.
    """

    mean: float
    most: float
    neighbour: float
    nearest: tuple[CentrePair, ...]


def spread(unit_CD: Floats) -> tuple[CentreSpread | None, CentreEnergy | None]:
    """Return how the centres, rows on the grid, are spread.

    Neither is known for fewer than two centres or more than :data:`MAX_CENTRES`; where two coincide, the energy is
    none.
    """
    if not 2 <= len(unit_CD) <= MAX_CENTRES:
        return None, None
    angle_P, neighbour_C = _pairs(unit_CD)
    found = CentreSpread(
        mean=int(angle_P.sum()) / len(angle_P) / DEGREE,
        most=int(angle_P.max()) / DEGREE,
        neighbour=int(neighbour_C.sum()) / len(unit_CD) / DEGREE,
        nearest=_nearest(angle_P, len(unit_CD)),
    )
    return found, _energy(angle_P)


def _pairs(unit_CD: Floats) -> tuple[Ints, Ints]:
    """Return the angles of all pairs, first by first, and each centre's angle to the nearest other."""
    every = np.arange(len(unit_CD))
    pairs, neighbours = [], []
    for start, stop in blocks(len(unit_CD), len(unit_CD)):
        angle = between(unit_CD[start:stop], unit_CD)
        pairs.append(angle[every > every[start:stop, None]])
        angle[every == every[start:stop, None]] = 360 * DEGREE
        neighbours.append(angle.min(axis=1))
    return np.concatenate(pairs), np.concatenate(neighbours)


def _nearest(angle_P: Ints, classes: int) -> tuple[CentrePair, ...]:
    most = min(MAX_NEAREST_PAIRS, len(angle_P))
    candidates = np.flatnonzero(angle_P <= np.partition(angle_P, most - 1)[most - 1])
    kept = candidates[np.argsort(angle_P[candidates], kind="stable")[:most]]
    # The pairs of first class c begin after those of the classes before it: (C - 1) + (C - 2) + ...
    start_C = np.concatenate([[0], np.cumsum(np.arange(classes - 1, 0, -1))])
    first = np.searchsorted(start_C, kept, side="right") - 1
    second = kept - start_C[first] + first + 1
    return tuple(
        CentrePair(first=one, second=other, angle=angle / DEGREE)
        for one, other, angle in zip(first.tolist(), second.tolist(), angle_P[kept].tolist(), strict=True)
    )


def _energy(angle_P: Ints) -> CentreEnergy | None:
    if not angle_P.min():
        return None
    inverse_P = 1 / np.radians(angle_P / DEGREE)
    # fsum rounds once, whatever the order.
    s0, s1, s2 = (math.fsum(terms) / len(angle_P) for terms in (np.log(inverse_P), inverse_P, inverse_P**2))
    return CentreEnergy(s0=s0, s1=s1, s2=s2)


MAX_PAIRED_SLICES = 2000
"""Slices whose angles to each other are measured: two million pairs."""

MAX_LISTED_CENTRES = 256
"""Classes up to which the centres' angles are listed."""

BIN_DEGREES = 2


@dataclass(frozen=True, kw_only=True)
class MeanAngles:
    """Mean angles in degrees; None where there is nothing to measure.

    Attributes:
        slices: Number of slices.
        own_centre: From a slice to its class's centre.
        other_centre: From a slice to the nearest of the other classes' centres.
        within: Between two slices of one class.
        between: Between a slice of this class and one of another; over all classes, between any two of different ones.
    """

    slices: int
    own_centre: float | None
    other_centre: float | None
    within: float | None
    between: float | None


@dataclass(frozen=True, kw_only=True)
class AngleHistogram:
    """Numbers of slices by angle, in bins of ``bin_degrees`` from 0 to 180; the last one holds 180 itself.

    Attributes:
        bin_degrees: Width of a bin.
        own_centre: By angle to the own class's centre.
        other_centre: By angle to the nearest other centre; all 0 where there is only one class.
    """

    bin_degrees: int
    own_centre: tuple[int, ...]
    other_centre: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a run's test slices and centres lie on the sphere.

    Attributes:
        overall: Of all slices.
        per_class: Of each class, in the order of the labels.
        paired: Slices whose angles to each other were measured; below all of them, a draw by class.
        centre_angles: Degrees between class centres (C x C); None above :data:`MAX_LISTED_CENTRES` classes.
        spread: Those angles in a few figures; None as :func:`~hsadml_dist.evaluation.geometry.spread` says.
        energy: How evenly the centres are spread; None likewise.
        histogram: See :class:`AngleHistogram`.
    """

    overall: MeanAngles
    per_class: tuple[MeanAngles, ...]
    paired: int
    centre_angles: tuple[tuple[float, ...], ...] | None
    spread: CentreSpread | None
    energy: CentreEnergy | None
    histogram: AngleHistogram


def geometry(
    emb_ND: npt.NDArray[np.floating], label_N: Ints, centre_CD: npt.NDArray[np.floating], *, seed: int = 0
) -> Geometry:
    """Return how classes lie on the sphere.

    Angles to centres are of all slices. Angles between slices are of all pairs up to :data:`MAX_PAIRED_SLICES` slices;
    above, of all pairs of that many slices, drawn so that every class keeps its share and at least one.

    Args:
        emb_ND: Embeddings of any length; a row of zeros stands at 90 degrees to everything.
        label_N: Their classes, 0 to C - 1.
        centre_CD: Class centres of any length.
        seed: Seed of the draw.

    Raises:
        DataError: A component that is not finite, or a label without a centre.
    """
    classes = len(centre_CD)
    if len(label_N) and (label_N.min() < 0 or label_N.max() >= classes):
        raise DataError(f"labels from {label_N.min()} to {label_N.max()}: must lie in 0 to {classes - 1}, the centres")
    unit_ND, unit_CD = gridded(emb_ND), gridded(centre_CD)
    own_N, other_N = _to_centres(unit_ND, label_N, unit_CD)
    drawn_K = stratified(label_N, most=MAX_PAIRED_SLICES, seed=seed)
    found, energy = spread(unit_CD)
    overall, per_class = _angles(own_N, other_N, label_N, _Pairs.measured(unit_ND[drawn_K], label_N[drawn_K], classes))
    return Geometry(
        overall=overall,
        per_class=per_class,
        paired=len(drawn_K),
        centre_angles=_centre_angles(unit_CD),
        spread=found,
        energy=energy,
        histogram=AngleHistogram(bin_degrees=BIN_DEGREES, own_centre=_binned(own_N), other_centre=_binned(other_N)),
    )


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Sums (C,) of angles over ordered pairs, by the class of the first, and their numbers."""

    within_C: Ints
    within_count_C: Ints
    between_C: Ints
    between_count_C: Ints

    @classmethod
    def measured(cls, unit_KD: Floats, label_K: Ints, classes: int) -> _Pairs:
        present_U, at_K = np.unique(label_K, return_inverse=True)
        # Whole numbers below 2**53 in sum: this matrix product is exact, too.
        member_KU = np.eye(len(present_U))[at_K]
        sum_UU = np.zeros((len(present_U), len(present_U)))
        for start, stop in blocks(len(unit_KD), len(unit_KD)):
            angle = between(unit_KD[start:stop], unit_KD)
            angle[np.arange(stop - start), np.arange(start, stop)] = 0
            sum_UU += member_KU[start:stop].T @ (angle.astype(np.float64) @ member_KU)
        count_C, same_C, all_C = (np.zeros(classes, dtype=np.int64) for _ in range(3))
        count_C[present_U], same_C[present_U], all_C[present_U] = np.bincount(at_K), sum_UU.diagonal(), sum_UU.sum(1)
        return cls(
            within_C=same_C,
            within_count_C=count_C * (count_C - 1),
            between_C=all_C - same_C,
            between_count_C=count_C * (len(unit_KD) - count_C),
        )


def _to_centres(unit_ND: Floats, label_N: Ints, unit_CD: Floats) -> tuple[Ints, Ints]:
    """Return each slice's angle to its own centre (N,) and to the nearest other; (0,) where there is no other."""
    own_N = np.empty(len(unit_ND), dtype=np.int64)
    other_N = np.empty(len(unit_ND) if len(unit_CD) > 1 else 0, dtype=np.int64)
    for start, stop in blocks(len(unit_ND), len(unit_CD)):
        angle = between(unit_ND[start:stop], unit_CD)
        row = np.arange(stop - start)
        own_N[start:stop] = angle[row, label_N[start:stop]]
        angle[row, label_N[start:stop]] = 360 * DEGREE
        if len(other_N):
            other_N[start:stop] = angle.min(axis=1)
    return own_N, other_N


def _angles(own_N: Ints, other_N: Ints, label_N: Ints, pairs: _Pairs) -> tuple[MeanAngles, tuple[MeanAngles, ...]]:
    """Return the means over all slices and over each class's."""
    classes = len(pairs.within_C)
    count_C = np.bincount(label_N, minlength=classes)
    own_C, other_C = (np.zeros(classes, dtype=np.int64) for _ in range(2))
    np.add.at(own_C, label_N, own_N)
    if len(other_N):
        np.add.at(other_C, label_N, other_N)
    other_count_C = count_C if len(other_N) else np.zeros_like(count_C)
    columns = (count_C, own_C, count_C, other_C, other_count_C, pairs.within_C, pairs.within_count_C)
    table_C9 = np.stack([*columns, pairs.between_C, pairs.between_count_C], axis=1)
    return _means(table_C9.sum(axis=0).tolist()), tuple(_means(row) for row in table_C9.tolist())


def _means(row: list[int]) -> MeanAngles:
    slices, *sums = row
    own, other, within, between = (
        total / count / DEGREE if count else None for total, count in zip(sums[::2], sums[1::2], strict=True)
    )
    return MeanAngles(slices=slices, own_centre=own, other_centre=other, within=within, between=between)


def _centre_angles(unit_CD: Floats) -> tuple[tuple[float, ...], ...] | None:
    if len(unit_CD) > MAX_LISTED_CENTRES:
        return None
    return tuple(tuple(row) for row in (between(unit_CD, unit_CD) / DEGREE).tolist())


def _binned(angle_N: Ints) -> tuple[int, ...]:
    bins = 180 // BIN_DEGREES
    return tuple(np.bincount(np.minimum(angle_N // (BIN_DEGREES * DEGREE), bins - 1), minlength=bins).tolist())
