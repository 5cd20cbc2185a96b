"""Whether probabilities mean what they say: of slices given 80 %, are 80 % right?

Shapes: N slices, C classes, B bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.metrics import Floats, Ints

MIN_PROBABILITY = float(np.finfo(np.float64).eps)
"""What a probability of the true class is raised to before its logarithm, so that one slice cannot cost infinity."""

_SLACK = 1e-6


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Slices of about the same confidence, which is the probability of the class said.

    Attributes:
        low: Confidence that all exceed.
        high: Confidence that none exceeds.
        count: Number of slices, at least 1.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities are from frequencies; less is better for all three figures.

    Attributes:
        expected_calibration_error: Mean over the slices of the gap between confidence and accuracy of their bin.
        brier_score: Mean squared distance of the probabilities from the true class's 1 and the others' 0; 0 to 2.
        negative_log_likelihood: Mean of minus the natural logarithm of the true class's probability.
        bins: Number of equal bins of confidence between 0 and 1.
        reliability: Those with slices in them, by ascending confidence.
    """

    expected_calibration_error: float
    brier_score: float
    negative_log_likelihood: float
    bins: int
    reliability: tuple[CalibrationBin, ...]


def calibration(probability_NC: Floats, label_N: Ints, bins: int = 15) -> Calibration:
    """Return how well probabilities are calibrated.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017: the bins ((b - 1) / B, b / B] and the
    expected calibration error, eq. 3, where the class said is the most probable one (of equals the lowest). Brier,
    Monthly Weather Review 78, 1950, for the score over several classes.

    Args:
        probability_NC: Probabilities, fp64; each row sums to 1.
        label_N: True classes.
        bins: Number of bins.

    Raises:
        DataError: No slices, labels outside the classes, or rows that are no probabilities.
    """
    _check(probability_NC, label_N, bins)
    confidence_N = probability_NC.max(axis=1)
    correct_N = probability_NC.argmax(axis=1) == label_N
    # Edges are divided out, not multiplied up: 29 / 35 * 35 is a hair above 29 and would end in the bin above.
    of_N = np.searchsorted(np.arange(1, bins) / bins, confidence_N, side="left")
    table = tuple(
        _bin(at, bins, confidence_N[of_N == at], int(correct_N[of_N == at].sum())) for at in np.unique(of_N).tolist()
    )
    gap = math.fsum(one.count * abs(one.accuracy - one.confidence) for one in table)
    return Calibration(
        expected_calibration_error=gap / len(label_N),
        brier_score=_brier(probability_NC, label_N),
        negative_log_likelihood=_surprise(probability_NC, label_N),
        bins=bins,
        reliability=table,
    )


def _check(probability_NC: Floats, label_N: Ints, bins: int) -> None:
    if bins < 1:
        raise DataError(f"bins is {bins}: must be at least 1")
    if not len(label_N):
        raise DataError("no slices: calibration needs at least one")
    if label_N.min() < 0 or label_N.max() >= probability_NC.shape[1]:
        raise DataError(
            f"labels from {label_N.min()} to {label_N.max()}: must lie in 0 to {probability_NC.shape[1] - 1}"
        )
    # Written so that NaN fails, too.
    good_N = (probability_NC >= 0).all(axis=1) & (np.abs(probability_NC.sum(axis=1) - 1) <= _SLACK)
    if not good_N.all():
        raise DataError(f"{(~good_N).sum()} of {len(good_N)} rows are no probabilities: at least 0, with sum 1")


def _bin(at: int, bins: int, confidence_K: Floats, right: int) -> CalibrationBin:
    count = len(confidence_K)
    # fsum: the mean then does not depend on the order of the slices.
    mean = math.fsum(confidence_K.tolist()) / count
    return CalibrationBin(low=at / bins, high=(at + 1) / bins, count=count, confidence=mean, accuracy=right / count)


def _brier(probability_NC: Floats, label_N: Ints) -> float:
    miss_NC = probability_NC.copy()
    miss_NC[np.arange(len(label_N)), label_N] -= 1
    return math.fsum((miss_NC * miss_NC).sum(axis=1).tolist()) / len(label_N)


def _surprise(probability_NC: Floats, label_N: Ints) -> float:
    true_N = probability_NC[np.arange(len(label_N)), label_N]
    return math.fsum(-math.log(max(value, MIN_PROBABILITY)) for value in true_N.tolist()) / len(label_N)
