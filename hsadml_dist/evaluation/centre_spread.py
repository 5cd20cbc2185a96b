"""How evenly the class centres are spread over the sphere: their angles in a few figures, and their energy.

Shapes: C classes, P pairs of them, D components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hsadml_dist.evaluation.scores import Floats, Ints
from hsadml_dist.evaluation.whole_angles import DEGREE, between, blocks

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
