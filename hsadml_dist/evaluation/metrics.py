"""Accuracy, confusion matrix, calibration, and stratified subsampling.

Shapes: N slices, C classes, P pairs of classes, K sampled or binned slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hsadml_dist.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_CONFUSED_PAIRS = 20

MIN_PROBABILITY = float(np.finfo(np.float64).eps)
"""Lower bound on the probability of the true class before the logarithm, so that one slice cannot cost infinity."""

_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Number of slices of the true class ``label`` that were confused with the class ``said``."""

    label: int
    said: int
    slices: int


@dataclass(frozen=True, kw_only=True)
class ConfusionSummary:
    """Summary of a confusion matrix for any number of classes.

    Attributes:
        classes: Classes with test slices.
        all_right: Classes with every slice correct.
        none_right: Classes with no slice correct.
        pairs: Number of different pairs (true class, predicted class) among the incorrect slices.
        worst: The pairs with most slices, at most :data:`MAX_CONFUSED_PAIRS`; of equal ones the lower labels first.
    """

    classes: int
    all_right: int
    none_right: int
    pairs: int
    worst: tuple[ConfusedPair, ...]


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Slices of similar confidence, which is the probability of the predicted class.

    Attributes:
        low: Lower end of the confidence, exclusive.
        high: Upper end, inclusive.
        count: Number of slices, at least 1.
        confidence: Their mean confidence.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of predicted probabilities; lower is better for the first three.

    Attributes:
        expected_calibration_error: Mean over the slices of the gap between confidence and accuracy of their bin.
        brier_score: Mean squared distance of the probabilities from 1 for the true class and 0 for the others; 0 to 2.
        negative_log_likelihood: Mean of minus the natural logarithm of the true class's probability.
        bins: Number of equal bins of confidence between 0 and 1.
        reliability: Bins that hold slices, by ascending confidence.
    """

    expected_calibration_error: float
    brier_score: float
    negative_log_likelihood: float
    bins: int
    reliability: tuple[CalibrationBin, ...]


def accuracy(correct_N: Bools) -> float:
    """Return the share of correct slices."""
    return float(np.mean(correct_N))


def balanced_accuracy(correct_N: Bools | Floats, label_N: Ints) -> float:
    """Return the accuracy, or the mean share of correct predictions, averaged over the true classes that occur."""
    all_C, correct_C = np.bincount(label_N), np.bincount(label_N, weights=correct_N)
    return float(np.mean(correct_C[all_C > 0] / all_C[all_C > 0]))


def confusion_matrix(label_N: Ints, predicted_N: Ints, classes: int) -> Ints:
    """Return counts (C, C): rows are true classes, columns predicted ones."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)


def summarise_confusions(label_N: Ints, predicted_N: Ints) -> ConfusionSummary:
    """Summarise the confusions; memory and time grow with the slices, not with the classes."""
    incorrect_N = label_N != predicted_N
    pair_P2, count_P = np.unique(np.stack([label_N, predicted_N], axis=1)[incorrect_N], axis=0, return_counts=True)
    # Pairs are sorted by label; a stable sort keeps that order among equal counts.
    worst = np.argsort(-count_P, kind="stable")[:MAX_CONFUSED_PAIRS]
    present_C, class_N = np.unique(label_N, return_inverse=True)
    incorrect_C = np.bincount(class_N, weights=incorrect_N, minlength=len(present_C))
    return ConfusionSummary(
        classes=len(present_C),
        all_right=int((incorrect_C == 0).sum()),
        none_right=int((incorrect_C == np.bincount(class_N, minlength=len(present_C))).sum()),
        pairs=len(count_P),
        worst=tuple(
            ConfusedPair(label=int(pair_P2[row, 0]), said=int(pair_P2[row, 1]), slices=int(count_P[row]))
            for row in worst
        ),
    )


def calibration(probability_NC: Floats, label_N: Ints, bins: int = 15) -> Calibration:
    """Measure the calibration of predicted probabilities.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017: bins ((b - 1) / B, b / B] and the expected
    calibration error, eq. 3, where the predicted class is the most probable one, the lowest of equally probable ones.
    Brier, Monthly Weather Review 78, 1950, for the score over several classes.

    Args:
        probability_NC: Probabilities, fp64; each row sums to 1.
        label_N: True classes.
        bins: Number of bins.

    Raises:
        DataError: There are no slices, labels are out of range, or rows are not probabilities.
    """
    _check_probabilities(probability_NC, label_N, bins)
    confidence_N = probability_NC.max(axis=1)
    correct_N = probability_NC.argmax(axis=1) == label_N
    # Edges are divided, not multiplied: 29 / 35 * 35 is slightly above 29 and would end in the bin above.
    bin_N = np.searchsorted(np.arange(1, bins) / bins, confidence_N, side="left")
    reliability = tuple(
        _calibration_bin(number, bins, confidence_N[bin_N == number], int(correct_N[bin_N == number].sum()))
        for number in np.unique(bin_N).tolist()
    )
    gap = math.fsum(one.count * abs(one.accuracy - one.confidence) for one in reliability)
    true_N = probability_NC[np.arange(len(label_N)), label_N].tolist()
    loss = math.fsum(-math.log(max(value, MIN_PROBABILITY)) for value in true_N)
    return Calibration(
        expected_calibration_error=gap / len(label_N),
        brier_score=_brier_score(probability_NC, label_N),
        negative_log_likelihood=loss / len(label_N),
        bins=bins,
        reliability=reliability,
    )


def stratified(label_N: Ints, *, limit: int, seed: int) -> Ints:
    """Sample at most ``limit`` slices without replacement, stratified by class.

    Each class keeps its share, rounded by largest remainders (of equal remainders, the lower class's first), and at
    least one slice. With more classes than ``limit`` that is impossible, and slices are sampled regardless of class.

    Args:
        label_N: Class of each slice.
        limit: Number of slices to sample; if there are no more, all are taken.
        seed: Seed of the sample.

    Returns:
        Positions (K,) in ascending order, int64: the same for the same labels and seed.
    """
    if len(label_N) <= limit:
        return np.arange(len(label_N), dtype=np.int64)
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    present_C, count_C = np.unique(label_N, return_counts=True)
    if len(present_C) > limit:
        return np.sort(order_N[:limit])
    quota_C = 1 + _apportion(count_C - 1, limit - len(present_C))
    parts = [order_N[label_N[order_N] == label][:quota] for label, quota in zip(present_C, quota_C, strict=True)]
    return np.sort(np.concatenate(parts))


def _apportion(count_C: Ints, total: int) -> Ints:
    """Split ``total`` in proportion to the counts into whole numbers; none exceeds its count."""
    share_C, remainder_C = np.divmod(count_C * total, count_C.sum())
    left = total - int(share_C.sum())
    share_C[np.argsort(-remainder_C, kind="stable")[:left]] += 1
    return share_C


def _check_probabilities(probability_NC: Floats, label_N: Ints, bins: int) -> None:
    if bins < 1:
        raise DataError(f"bins: {bins} is too small; allowed: at least 1")
    if not len(label_N):
        raise DataError("slices: there are none; calibration needs at least one")
    if label_N.min() < 0 or label_N.max() >= probability_NC.shape[1]:
        last = probability_NC.shape[1] - 1
        raise DataError(f"labels: found {label_N.min()} to {label_N.max()}; allowed: 0 to {last}")
    # Written so that NaN fails, too.
    valid_N = (probability_NC >= 0).all(axis=1) & (np.abs(probability_NC.sum(axis=1) - 1) <= _SUM_TOLERANCE)
    if not valid_N.all():
        count = (~valid_N).sum()
        raise DataError(f"probabilities: {count} of {len(valid_N)} rows are negative, NaN or do not sum to 1")


def _calibration_bin(number: int, bins: int, confidence_K: Floats, correct: int) -> CalibrationBin:
    count = len(confidence_K)
    # fsum: the mean does not depend on the order of the slices.
    mean = math.fsum(confidence_K.tolist()) / count
    return CalibrationBin(
        low=number / bins, high=(number + 1) / bins, count=count, confidence=mean, accuracy=correct / count
    )


def _brier_score(probability_NC: Floats, label_N: Ints) -> float:
    error_NC = probability_NC.copy()
    error_NC[np.arange(len(label_N)), label_N] -= 1
    return math.fsum((error_NC * error_NC).sum(axis=1).tolist()) / len(label_N)
