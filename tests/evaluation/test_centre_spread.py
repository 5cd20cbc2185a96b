"""The spread of centres, against loops over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hsadml_dist.evaluation import centre_spread as module
from hsadml_dist.evaluation import whole_angles
from hsadml_dist.evaluation.centre_spread import MAX_NEAREST_PAIRS, CentrePair, spread
from hsadml_dist.evaluation.whole_angles import DEGREE, between, gridded


@pytest.fixture
def centres() -> np.ndarray:
    return gridded(np.random.default_rng(3).normal(size=(23, 6)))


def slow_pairs(unit_CD: np.ndarray) -> dict[tuple[int, int], float]:
    angles = between(unit_CD, unit_CD) / DEGREE
    return {pair: float(angles[pair]) for pair in itertools.combinations(range(len(unit_CD)), 2)}


def test_the_figures_are_those_of_a_loop_over_pairs(centres: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_angles, "BLOCK_ELEMENTS", 100)
    found, energy = spread(centres)
    assert found is not None and energy is not None
    pairs = slow_pairs(centres)
    assert found.mean == pytest.approx(np.mean(list(pairs.values())), rel=1e-12)
    assert found.most == max(pairs.values())
    least = [min(angle for pair, angle in pairs.items() if centre in pair) for centre in range(len(centres))]
    assert found.neighbour == pytest.approx(np.mean(least), rel=1e-12)
    closest = sorted(pairs.items(), key=lambda item: (item[1], item[0]))[:MAX_NEAREST_PAIRS]
    assert [((one.first, one.second), one.angle) for one in found.nearest] == closest
    assert energy.s1 == pytest.approx(np.mean([1 / np.radians(angle) for angle in pairs.values()]), rel=1e-12)


def test_of_equal_pairs_the_lower_labels_come_first() -> None:
    found, _ = spread(gridded(np.eye(9)))
    assert found is not None
    assert [(one.first, one.second) for one in found.nearest] == [
        *((0, label) for label in range(1, 9)),
        (1, 2),
        (1, 3),
    ]
    assert {one.angle for one in found.nearest} == {90.0} == {found.mean, found.most, found.neighbour}


def test_two_centres_are_one_pair_and_equal_ones_have_no_energy() -> None:
    found, energy = spread(gridded(np.array([[1.0, 0], [1, 0]])))
    assert found is not None and found.nearest == (CentrePair(first=0, second=1, angle=0.0),)
    assert energy is None


@pytest.mark.parametrize("classes", [0, 1, 5])
def test_too_few_and_too_many_centres_are_not_measured(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CENTRES", 4)
    assert spread(gridded(np.eye(5)[:classes])) == (None, None)
