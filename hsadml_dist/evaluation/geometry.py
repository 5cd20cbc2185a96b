"""Angles within and between classes on the sphere, the spread of the class centres, and their energy.

Angles are whole numbers of millionths of a degree, computed from exact products (see
:mod:`hsadml_dist.evaluation.knn`). Sums of such angles are exact in any order, so no figure depends on the number of
threads, the block size or the machine's matrix product.

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
"""Angles are counted in millionths of a degree, the precision of the embeddings."""

BLOCK_ELEMENTS = 1 << 21
"""Angles computed at a time; affects the memory use only."""

MAX_CENTRES = 4096
"""Largest number of classes for which all pairs of centres are compared: eight million pairs, a few seconds."""

MAX_NEAREST_PAIRS = 10

MAX_PAIRED_SLICES = 2000
"""Largest number of slices compared with each other: two million pairs."""

MAX_LISTED_CENTRES = 256
"""Largest number of classes for which all angles between centres are listed."""

BIN_DEGREES = 2


@dataclass(frozen=True, kw_only=True)
class CentreEnergy:
    """Hyperspherical energy of the centres, mean over pairs; lower means more evenly spread.

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
    """Labels of two centres, and the angle between them in degrees."""

    first: int
    second: int
    angle: float


@dataclass(frozen=True, kw_only=True)
class CentreSpread:
    """Mean and largest angle between class centres, in degrees.

    Attributes:
        neighbour: Angle from a centre to its nearest centre, mean over the centres.
        nearest: The closest pairs, at most :data:`MAX_NEAREST_PAIRS`, closest first; of equal ones the lower labels
            first.
    """

    mean: float
    most: float
    neighbour: float
    nearest: tuple[CentrePair, ...]


@dataclass(frozen=True, kw_only=True)
class MeanAngles:
    """Mean angles in degrees; None if there is nothing to measure.

    Attributes:
        own_centre: From a slice to the centre of its class.
        other_centre: From a slice to the nearest centre of another class.
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
    """Numbers of slices by angle, in bins of ``bin_degrees`` from 0 to 180; the last bin includes 180.

    Attributes:
        own_centre: By angle to the centre of the own class.
        other_centre: By angle to the nearest other centre; all 0 for a single class.
    """

    bin_degrees: int
    own_centre: tuple[int, ...]
    other_centre: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Geometry of a run's test slices and class centres on the sphere.

    Attributes:
        overall: Mean angles of all slices.
        per_class: Mean angles of each class, in label order.
        paired: Number of slices compared with each other: all, or a stratified sample.
        centre_angles: Degrees between class centres (C x C); None above :data:`MAX_LISTED_CENTRES` classes.
        spread: Summary of those angles; None as in :func:`centre_spread`.
        energy: Energy of the centres; None as in :func:`centre_spread`.
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
    """Measure the geometry of classes on the sphere.

    Angles to centres are measured for all slices, angles between slices for all pairs of at most
    :data:`MAX_PAIRED_SLICES` slices; of more, for a stratified sample of that size.

    Args:
        emb_ND: Embeddings of any length; a row of zeros is at 90 degrees to everything.
        label_N: Their classes, 0 to C - 1.
        centre_CD: Class centres of any length.
        seed: Seed of the sample.

    Raises:
        DataError: A component is not finite, or a label has no centre.
    """
    classes = len(centre_CD)
    if len(label_N) and (label_N.min() < 0 or label_N.max() >= classes):
        raise DataError(f"labels: found {label_N.min()} to {label_N.max()}; allowed: 0 to {classes - 1}, the centres")
    unit_ND, unit_CD = unit_on_grid(emb_ND), unit_on_grid(centre_CD)
    own_N, other_N = _angles_to_centres(unit_ND, label_N, unit_CD)
    sample_K = stratified(label_N, limit=MAX_PAIRED_SLICES, seed=seed)
    spread, energy = centre_spread(unit_CD)
    pairs = _pair_sums(unit_ND[sample_K], label_N[sample_K], classes)
    overall, per_class = _mean_angles(own_N, other_N, label_N, pairs)
    listed = exact_angles(unit_CD, unit_CD) / DEGREE if classes <= MAX_LISTED_CENTRES else None
    return Geometry(
        overall=overall,
        per_class=per_class,
        paired=len(sample_K),
        centre_angles=None if listed is None else tuple(map(tuple, listed.tolist())),
        spread=spread,
        energy=energy,
        histogram=AngleHistogram(
            bin_degrees=BIN_DEGREES, own_centre=_histogram(own_N), other_centre=_histogram(other_N)
        ),
    )


def unit_on_grid(rows_MD: npt.NDArray[np.floating]) -> Floats:
    """Return unit rows on the grid for exact products.

    Raises:
        DataError: A component is not finite.
    """
    return round_to_grid(torch.tensor(rows_MD)).numpy()


def exact_angles(grid_MD: Floats, grid_RD: Floats) -> Ints:
    """Return the angles (M, R) between rows on the grid, in millionths of a degree.

    Computed from the lengths of difference and sum, because the arc cosine of a number near 1 loses half the digits.
    """
    dot_MR = grid_MD @ grid_RD.T
    square_M1, square_R = (grid_MD * grid_MD).sum(axis=1)[:, None], (grid_RD * grid_RD).sum(axis=1)
    difference_MR = (square_M1 - dot_MR) + (square_R - dot_MR)
    sum_MR = (square_M1 + dot_MR) + (square_R + dot_MR)
    # Two rows of zeros: equal difference and sum mean 90 degrees.
    zero_MR = difference_MR + sum_MR == 0
    difference_MR[zero_MR] = sum_MR[zero_MR] = 1
    return np.rint(np.degrees(2 * np.arctan2(np.sqrt(difference_MR), np.sqrt(sum_MR))) * DEGREE).astype(np.int64)


def blocks(rows: int, width: int) -> list[tuple[int, int]]:
    """Split rows into ranges (start, stop) of at most :data:`BLOCK_ELEMENTS` elements at ``width`` per row."""
    step = max(1, BLOCK_ELEMENTS // max(width, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def centre_spread(unit_CD: Floats) -> tuple[CentreSpread | None, CentreEnergy | None]:
    """Measure the spread and the energy of the centres, rows on the grid.

    Both are None for fewer than two centres or more than :data:`MAX_CENTRES`; the energy is None if two coincide.
    """
    if not 2 <= len(unit_CD) <= MAX_CENTRES:
        return None, None
    angle_P, neighbour_C = _pair_angles(unit_CD)
    spread = CentreSpread(
        mean=int(angle_P.sum()) / len(angle_P) / DEGREE,
        most=int(angle_P.max()) / DEGREE,
        neighbour=int(neighbour_C.sum()) / len(unit_CD) / DEGREE,
        nearest=_nearest_pairs(angle_P, len(unit_CD)),
    )
    return spread, _energy(angle_P)


def _pair_angles(unit_CD: Floats) -> tuple[Ints, Ints]:
    """Return the angles of all pairs, sorted by first centre, and each centre's angle to the nearest other."""
    label = np.arange(len(unit_CD))
    pairs, neighbours = [], []
    for start, stop in blocks(len(unit_CD), len(unit_CD)):
        angle = exact_angles(unit_CD[start:stop], unit_CD)
        pairs.append(angle[label > label[start:stop, None]])
        angle[label == label[start:stop, None]] = 360 * DEGREE
        neighbours.append(angle.min(axis=1))
    return np.concatenate(pairs), np.concatenate(neighbours)


def _nearest_pairs(angle_P: Ints, classes: int) -> tuple[CentrePair, ...]:
    count = min(MAX_NEAREST_PAIRS, len(angle_P))
    candidates = np.flatnonzero(angle_P <= np.partition(angle_P, count - 1)[count - 1])
    kept = candidates[np.argsort(angle_P[candidates], kind="stable")[:count]]
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
    # fsum rounds once, in any order.
    s0, s1, s2 = (math.fsum(terms) / len(angle_P) for terms in (np.log(inverse_P), inverse_P, inverse_P**2))
    return CentreEnergy(s0=s0, s1=s1, s2=s2)


def _pair_sums(unit_KD: Floats, label_K: Ints, classes: int) -> list[Ints]:
    """Return sums of angles over ordered pairs and numbers of pairs, within and between: four arrays (C,).

    Pairs count for the class of their first slice.
    """
    present_U, column_K = np.unique(label_K, return_inverse=True)
    # Sums of whole numbers below 2**53: this matrix product is exact, too.
    member_KU = np.eye(len(present_U))[column_K]
    sum_UU = np.zeros((len(present_U), len(present_U)))
    for start, stop in blocks(len(unit_KD), len(unit_KD)):
        angle = exact_angles(unit_KD[start:stop], unit_KD)
        angle[np.arange(stop - start), np.arange(start, stop)] = 0
        sum_UU += member_KU[start:stop].T @ (angle.astype(np.float64) @ member_KU)
    count_C, same_C, all_C = (np.zeros(classes, dtype=np.int64) for _ in range(3))
    count_C[present_U] = np.bincount(column_K)
    same_C[present_U], all_C[present_U] = sum_UU.diagonal(), sum_UU.sum(1)
    return [same_C, count_C * (count_C - 1), all_C - same_C, count_C * (len(unit_KD) - count_C)]


def _angles_to_centres(unit_ND: Floats, label_N: Ints, unit_CD: Floats) -> tuple[Ints, Ints]:
    """Return each slice's angle to its own centre (N,) and to the nearest other centre; (0,) if there is no other."""
    own_N = np.empty(len(unit_ND), dtype=np.int64)
    other_N = np.empty(len(unit_ND) if len(unit_CD) > 1 else 0, dtype=np.int64)
    for start, stop in blocks(len(unit_ND), len(unit_CD)):
        angle = exact_angles(unit_ND[start:stop], unit_CD)
        row = np.arange(stop - start)
        own_N[start:stop] = angle[row, label_N[start:stop]]
        angle[row, label_N[start:stop]] = 360 * DEGREE
        if len(other_N):
            other_N[start:stop] = angle.min(axis=1)
    return own_N, other_N


def _mean_angles(
    own_N: Ints, other_N: Ints, label_N: Ints, pairs: list[Ints]
) -> tuple[MeanAngles, tuple[MeanAngles, ...]]:
    """Return the means over all slices and over those of each class."""
    count_C = np.bincount(label_N, minlength=len(pairs[0]))
    own_C, other_C = np.zeros_like(count_C), np.zeros_like(count_C)
    np.add.at(own_C, label_N, own_N)
    if len(other_N):
        np.add.at(other_C, label_N, other_N)
    other_count_C = count_C if len(other_N) else np.zeros_like(count_C)
    table_C9 = np.stack([count_C, own_C, count_C, other_C, other_count_C, *pairs], axis=1)
    return _divide(table_C9.sum(axis=0).tolist()), tuple(_divide(row) for row in table_C9.tolist())


def _divide(row: list[int]) -> MeanAngles:
    slices, *sums = row
    own, other, within, between = (
        total / count / DEGREE if count else None for total, count in zip(sums[::2], sums[1::2], strict=True)
    )
    return MeanAngles(slices=slices, own_centre=own, other_centre=other, within=within, between=between)


def _histogram(angle_N: Ints) -> tuple[int, ...]:
    bins = 180 // BIN_DEGREES
    return tuple(np.bincount(np.minimum(angle_N // (BIN_DEGREES * DEGREE), bins - 1), minlength=bins).tolist())
