"""Intervals over patients against a slow loop, against closed forms, and by their coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from hsadml_dist.evaluation.intervals import (
    MAX_CONFUSION_CLASSES,
    MIN_UNITS,
    accuracy_interval,
    balanced_interval,
    difference_interval,
    interval_caution,
)
from hsadml_dist.evaluation.patient_metrics import Clusters, clusters


def group_by(persons: Sequence[int] | np.ndarray) -> Clusters:
    return clusters([f"{person:04d}" for person in persons], [None] * len(persons))


def slow_interval(
    values: Sequence[float], parts: Sequence[float], weights: Sequence[float], value: float, shares: bool
) -> tuple[float, float]:
    """Return the interval of a mean over slices.

    Args:
        values: The mean without each patient.
        parts: The patient's share of the slices.
        weights: The patient's part in the degrees of freedom.
        value: The whole mean.
        shares: True for the logit scale.
    """
    squares = [(1 - part) * (one - value) ** 2 for one, part in zip(values, parts, strict=True)]
    variance = sum(squares)
    numbers = [sum(column) ** 2 / sum(one**2 for one in column) for column in (weights, squares)]
    t = stats.t.ppf(0.975, min(numbers[0], 3 * numbers[1]) - 1)
    if not shares:
        return value - t * math.sqrt(variance), value + t * math.sqrt(variance)
    logit, error = math.log(value / (1 - value)), math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(logit + sign * t * error))) for sign in (-1, 1))
    return low, high


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients, labels and predictions of 300 slices of 25 patients."""
    generator = np.random.default_rng(5)
    person = np.sort(np.concatenate([np.arange(25), generator.integers(0, 25, 275)]))
    label = generator.integers(0, 3, 300)
    return person, label, np.where(generator.random(300) < generator.random(25)[person], label, (label + 1) % 3)


def test_accuracy_interval_equals_slow_loop(sample):
    person, label, predicted = sample
    correct = predicted == label
    without = [float(correct[person != one].mean()) for one in range(25)]
    parts = [float((person == one).mean()) for one in range(25)]
    expected = slow_interval(without, parts, [part**2 for part in parts], float(correct.mean()), shares=True)
    assert accuracy_interval(correct, group_by(person)) == pytest.approx(expected, rel=1e-9)


def slow_balanced_interval(person: np.ndarray, label: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """Return the interval by one loop over patients and classes."""
    value = balanced_accuracy_score(label, np.where(correct, label, -1 - label))
    squares, weights = [], []
    for one in range(25):
        deviation = weight = 0.0
        for name in range(3):
            own, of_class = (person == one) & (label == name), label == name
            part = own.sum() / of_class.sum()
            change = correct[of_class].mean() - correct[of_class & ~own].mean()
            deviation += math.sqrt(1 - part) * change / 3
            weight += part**2
        squares.append(deviation**2)
        weights.append(weight)
    numbers = [sum(column) ** 2 / sum(one**2 for one in column) for column in (weights, squares)]
    reach = stats.t.ppf(0.975, min(numbers[0], 3 * numbers[1]) - 1) * math.sqrt(sum(squares)) / (value * (1 - value))
    low, high = (1 / (1 + (1 - value) / value * math.exp(sign * reach)) for sign in (1, -1))
    return low, high


def test_balanced_interval_equals_slow_loop(sample):
    person, label, predicted = sample
    found = balanced_interval(predicted == label, label, 3, group_by(person))
    assert found == pytest.approx(slow_balanced_interval(person, label, predicted == label), rel=1e-9)
    assert balanced_interval(predicted == label, label, 7, group_by(person)) == found
    assert balanced_interval(predicted == label, label, MAX_CONFUSION_CLASSES + 1, group_by(person)) is None


def test_difference_interval_equals_slow_loop(sample):
    person, label, predicted = sample
    difference = (predicted == label) - (label == 1).astype(float)
    without = [float(difference[person != one].mean()) for one in range(25)]
    parts = [float((person == one).mean()) for one in range(25)]
    expected = slow_interval(without, parts, [part**2 for part in parts], float(difference.mean()), shares=False)
    assert difference_interval(difference, group_by(person)) == pytest.approx(expected, rel=1e-9)


def test_difference_of_single_slices_has_the_interval_of_the_t_test():
    difference = 0.1 + 0.3 * (-1.0) ** np.arange(12)
    expected = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert difference_interval(difference, group_by(range(12))) == pytest.approx(tuple(expected), rel=1e-9)


@pytest.mark.parametrize(("share", "end"), [(1.0, 1), (0.0, 0)])
def test_all_or_no_slices_correct_give_an_interval_with_a_width(share, end):
    """Wilson's interval of one observation per patient; for 10 patients t is 2.262."""
    found = accuracy_interval(np.full(50, share), group_by(np.repeat(range(10), 5)))
    assert found is not None
    assert found[end] == pytest.approx(share, abs=1e-12)
    assert abs(found[1 - end] - share) == pytest.approx(2.262157**2 / (10 + 2.262157**2), rel=1e-6)


def test_ends_stay_within_the_possible_values():
    correct = np.array([False] + [True] * 29)
    low, high = accuracy_interval(correct, group_by(np.repeat(range(5), 6)))
    assert 0 < low < 29 / 30 < high < 1
    difference = np.array([1.0, 1, 1, 1, -1])
    assert difference_interval(difference, group_by(range(5)))[1] == 1.0


@pytest.mark.parametrize("units", [1, MIN_UNITS - 1])
def test_few_patients_have_no_interval(units):
    correct, groups = np.arange(units * 3) % 2 == 0, group_by(np.repeat(range(units), 3))
    assert accuracy_interval(correct, groups) is None
    assert balanced_interval(correct, np.zeros(units * 3, dtype=int), 1, groups) is None
    assert difference_interval(correct.astype(float), groups) is None


def test_caution_codes():
    codes = [interval_caution(units) for units in (1, 4, 5, 19, 20, 1000)]
    assert codes == ["too_few_units"] * 2 + ["few_units"] * 2 + [None] * 2


def coverage(patients: int, cluster_of: np.ndarray, slices: int = 5, trials: int = 500) -> float:
    """Return the share of trials whose interval contains the true accuracy .75; slices of a patient correlate by .3."""
    generator, inside = np.random.default_rng(11), 0
    groups = group_by(cluster_of)
    for _ in range(trials):
        chance = generator.beta(0.75 * 7 / 3, 0.25 * 7 / 3, patients)
        low, high = accuracy_interval(generator.random(patients * slices) < np.repeat(chance, slices), groups)
        inside += low <= 0.75 <= high
    return inside / trials


@pytest.mark.parametrize("patients", [10, 28])
def test_interval_has_its_coverage_by_patient_and_not_by_slice(patients):
    """The bounds are three standard errors of 500 trials around 93 to 97 %."""
    assert 0.896 <= coverage(patients, np.repeat(np.arange(patients), 5)) <= 0.993
    assert coverage(patients, np.arange(patients * 5)) < 0.89
