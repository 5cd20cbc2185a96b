"""Calibration of probabilities against slow loops and scikit-learn."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.metrics import MIN_PROBABILITY, calibration

Sample = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def sample() -> Sample:
    generator = np.random.default_rng(0)
    score = 3 * generator.normal(size=(400, 4))
    probability = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    return probability, np.where(generator.random(400) < 0.7, probability.argmax(axis=1), generator.integers(0, 4, 400))


def slow_calibration_error(probability: np.ndarray, label: np.ndarray, bins: int) -> float:
    total = 0.0
    for at in range(bins):
        inside = [row for row in range(len(label)) if at / bins < max(probability[row]) <= (at + 1) / bins]
        if inside:
            accuracy = sum(probability[row].argmax() == label[row] for row in inside) / len(inside)
            confidence = sum(max(probability[row]) for row in inside) / len(inside)
            total += len(inside) / len(label) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_calibration_error_equals_slow_loop(sample: Sample, bins: int) -> None:
    found = calibration(*sample, bins=bins)
    assert found.expected_calibration_error == pytest.approx(slow_calibration_error(*sample, bins), abs=1e-12) != 0
    assert found.bins == bins


def test_brier_score_and_likelihood_equal_scikit_learn(sample: Sample) -> None:
    probability, label = sample
    found = calibration(probability, label)
    assert found.negative_log_likelihood == pytest.approx(log_loss(label, probability), rel=1e-12)
    one_hot = sum(
        (probability[row] - np.eye(4)[label[row]]) @ (probability[row] - np.eye(4)[label[row]]) for row in range(400)
    )
    assert found.brier_score == pytest.approx(one_hot / 400, rel=1e-12)


def test_brier_score_of_two_classes_is_twice_the_binary_score(sample: Sample) -> None:
    one = sample[0][:, 0]
    label = (sample[1] == 0).astype(np.int64)
    found = calibration(np.stack([1 - one, one], axis=1), label)
    assert found.brier_score == pytest.approx(2 * brier_score_loss(label, one), rel=1e-12)


def test_reliability_counts_every_slice_once_and_has_no_empty_bin(sample: Sample) -> None:
    table = calibration(*sample).reliability
    assert sum(one.count for one in table) == 400
    assert all(one.count >= 1 and one.low < one.confidence <= one.high for one in table)
    assert [one.low for one in table] == sorted({one.low for one in table})
    correct = sum(one.count * one.accuracy for one in table)
    assert correct == pytest.approx((sample[0].argmax(axis=1) == sample[1]).sum(), abs=1e-9)
    # With four classes no confidence is below a quarter.
    assert len(table) <= 12 and table[0].high > 0.25


@pytest.mark.parametrize("bins", [2, 3, 5, 7, 10, 15, 35, 49])
def test_confidence_on_an_edge_belongs_to_the_lower_bin(bins: int) -> None:
    edge = np.array([at / bins for at in range(1, bins + 1) if at / bins >= 0.5])
    table = calibration(np.stack([edge, 1 - edge], axis=1), np.zeros(len(edge), dtype=np.int64), bins=bins).reliability
    assert [(one.high, one.count) for one in table] == [(value, 1) for value in edge]


def test_calibration_error_is_zero_for_true_frequencies_and_one_for_certain_errors() -> None:
    predicted, label = np.tile([0.75, 0.25], (8, 1)), np.array([0, 0, 0, 1] * 2)
    assert calibration(predicted, label).expected_calibration_error == 0
    certain = calibration(np.tile([1.0, 0.0], (4, 1)), np.ones(4, dtype=np.int64))
    assert (certain.expected_calibration_error, certain.brier_score) == (1, 2)
    assert certain.negative_log_likelihood == pytest.approx(-math.log(MIN_PROBABILITY))


def test_calibration_is_independent_of_the_order_of_slices(sample: Sample) -> None:
    order = np.random.default_rng(1).permutation(400)
    assert calibration(*sample) == calibration(sample[0][order], sample[1][order])


def test_calibration_converts_to_json(sample: Sample) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(calibration(*sample)), allow_nan=False))
    assert set(values["reliability"][0]) == {"low", "high", "count", "confidence", "accuracy"}


@pytest.mark.parametrize(
    ("probability", "label", "bins", "message"),
    [
        (np.empty((0, 2)), [], 15, "slices"),
        ([[0.5, 0.5]], [2], 15, "labels: found 2 to 2; allowed: 0 to 1"),
        ([[0.5, 0.5]], [-1], 15, "labels: found -1"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 0], 15, "1 of 2 rows"),
        ([[np.nan, 0.5]], [0], 15, "1 of 1 rows"),
        ([[1.5, -0.5]], [0], 15, "1 of 1 rows"),
        ([[0.5, 0.5]], [0], 0, "bins: 0"),
    ],
)
def test_calibration_refuses_invalid_input(probability: object, label: list[int], bins: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibration(np.array(probability, dtype=np.float64), np.array(label, dtype=np.int64), bins=bins)
