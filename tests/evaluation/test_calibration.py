"""Calibration against slow loops and scikit-learn."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.calibration import MIN_PROBABILITY, calibration

Sample = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def drawn() -> Sample:
    generator = np.random.default_rng(0)
    score = 3 * generator.normal(size=(400, 4))
    probability = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    return probability, np.where(generator.random(400) < 0.7, probability.argmax(axis=1), generator.integers(0, 4, 400))


def slow_error(probability: np.ndarray, label: np.ndarray, bins: int) -> float:
    total = 0.0
    for at in range(bins):
        inside = [row for row in range(len(label)) if at / bins < max(probability[row]) <= (at + 1) / bins]
        if inside:
            right = sum(probability[row].argmax() == label[row] for row in inside) / len(inside)
            confidence = sum(max(probability[row]) for row in inside) / len(inside)
            total += len(inside) / len(label) * abs(right - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_the_error_is_that_of_a_slow_loop(drawn: Sample, bins: int) -> None:
    found = calibration(*drawn, bins=bins)
    assert found.expected_calibration_error == pytest.approx(slow_error(*drawn, bins), abs=1e-12) != 0
    assert found.bins == bins


def test_brier_and_likelihood_are_scikit_learns(drawn: Sample) -> None:
    probability, label = drawn
    found = calibration(probability, label)
    assert found.negative_log_likelihood == pytest.approx(log_loss(label, probability), rel=1e-12)
    one_hot = sum(
        (probability[row] - np.eye(4)[label[row]]) @ (probability[row] - np.eye(4)[label[row]]) for row in range(400)
    )
    assert found.brier_score == pytest.approx(one_hot / 400, rel=1e-12)


def test_brier_of_two_classes_is_twice_the_usual_one(drawn: Sample) -> None:
    one = drawn[0][:, 0]
    label = (drawn[1] == 0).astype(np.int64)
    found = calibration(np.stack([1 - one, one], axis=1), label)
    assert found.brier_score == pytest.approx(2 * brier_score_loss(label, one), rel=1e-12)


def test_the_table_holds_every_slice_once_and_no_empty_bin(drawn: Sample) -> None:
    table = calibration(*drawn).reliability
    assert sum(one.count for one in table) == 400
    assert all(one.count >= 1 and one.low < one.confidence <= one.high for one in table)
    assert [one.low for one in table] == sorted({one.low for one in table})
    right = sum(one.count * one.accuracy for one in table)
    assert right == pytest.approx((drawn[0].argmax(axis=1) == drawn[1]).sum(), abs=1e-9)
    # With four classes no confidence lies below a quarter.
    assert len(table) <= 12 and table[0].high > 0.25


@pytest.mark.parametrize("bins", [2, 3, 5, 7, 10, 15, 35, 49])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(bins: int) -> None:
    edge = np.array([at / bins for at in range(1, bins + 1) if at / bins >= 0.5])
    table = calibration(np.stack([edge, 1 - edge], axis=1), np.zeros(len(edge), dtype=np.int64), bins=bins).reliability
    assert [(one.high, one.count) for one in table] == [(value, 1) for value in edge]


def test_frequencies_as_said_have_no_error_and_sure_mistakes_all_of_it() -> None:
    said, label = np.tile([0.75, 0.25], (8, 1)), np.array([0, 0, 0, 1] * 2)
    assert calibration(said, label).expected_calibration_error == 0
    sure = calibration(np.tile([1.0, 0.0], (4, 1)), np.ones(4, dtype=np.int64))
    assert (sure.expected_calibration_error, sure.brier_score) == (1, 2)
    assert sure.negative_log_likelihood == pytest.approx(-math.log(MIN_PROBABILITY))


def test_the_order_of_the_slices_changes_nothing(drawn: Sample) -> None:
    turn = np.random.default_rng(1).permutation(400)
    assert calibration(*drawn) == calibration(drawn[0][turn], drawn[1][turn])


def test_it_is_json(drawn: Sample) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(calibration(*drawn)), allow_nan=False))
    assert set(values["reliability"][0]) == {"low", "high", "count", "confidence", "accuracy"}


@pytest.mark.parametrize(
    ("probability", "label", "bins", "complaint"),
    [
        (np.empty((0, 2)), [], 15, "no slices"),
        ([[0.5, 0.5]], [2], 15, "labels from 2 to 2: must lie in 0 to 1"),
        ([[0.5, 0.5]], [-1], 15, "labels from -1"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 0], 15, "1 of 2 rows are no probabilities"),
        ([[np.nan, 0.5]], [0], 15, "1 of 1 rows"),
        ([[1.5, -0.5]], [0], 15, "1 of 1 rows"),
        ([[0.5, 0.5]], [0], 0, "bins is 0"),
    ],
)
def test_what_is_no_probability_is_refused(probability: object, label: list[int], bins: int, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        calibration(np.array(probability, dtype=np.float64), np.array(label, dtype=np.int64), bins=bins)
