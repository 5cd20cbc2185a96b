"""Confidence intervals that treat the slices of a patient as a cluster, for few patients as for many.

Slices of one patient resemble one another, so intervals as if they were independent would be far too narrow; percentile
bootstraps over few patients are too narrow as well. These are jackknives that leave out whole patients, with quantiles
of Student's t; shares get theirs on the logit scale, which keeps them within 0 and 1.
``benchmarks/interval_coverage.py`` measures how often such intervals contain the true value.

Shapes: N slices, C classes, G clusters (patients), P pairs of a cluster and a class that have slices in common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from hsadml_dist.evaluation.metrics import Bools, Floats, Ints
from hsadml_dist.evaluation.patient_metrics import Clusters

Interval = tuple[float, float]
Caution = Literal["few_units", "too_few_units"]

LEVEL = 0.95
METHOD = "jackknife_t"
"""Name of the method in result files."""
MIN_UNITS = 5
"""Smallest number of clusters for which there is an interval."""
FEW_UNITS = 20
"""Below this number of clusters, an interval comes with a caution."""
MAX_CONFUSION_CLASSES = 256
"""Largest number of classes for which a result holds C x C values: 256 take half a megabyte of ``result.json``."""
NORMAL_KURTOSIS = 3
ROUNDING_ERROR = 1e-9
"""Standard errors below this are 0."""


@dataclass(frozen=True, kw_only=True)
class _Estimate:
    """A mean with its standard error, and the quantile of Student's t for it."""

    value: float
    error: float
    quantile: float
    units: int


def interval_caution(units: int) -> Caution | None:
    """Return a code if there are so few clusters that intervals are missing or rough."""
    if units < MIN_UNITS:
        return "too_few_units"
    return "few_units" if units < FEW_UNITS else None


def accuracy_interval(correct_N: Bools | Floats, groups: Clusters) -> Interval | None:
    """Return the interval of the mean of ``correct_N``: predictions that are correct, or the share of trainings.

    Args:
        correct_N: Values from 0 to 1.
        groups: The patients, or the finest known substitute.

    Returns:
        The two ends, from 0 to 1, or None for fewer than :data:`MIN_UNITS` patients.
    """
    return balanced_interval(correct_N, np.zeros(len(correct_N), dtype=np.int64), 1, groups)


def balanced_interval(correct_N: Bools | Floats, label_N: Ints, classes: int, groups: Clusters) -> Interval | None:
    """Return the interval of the balanced accuracy; None above :data:`MAX_CONFUSION_CLASSES` classes, too.

    Args:
        correct_N: See :func:`accuracy_interval`.
        label_N: True classes.
        classes: Number of classes, C.
        groups: See :func:`accuracy_interval`.
    """
    if groups.count < MIN_UNITS or classes > MAX_CONFUSION_CLASSES:
        return None
    found = _jackknife(correct_N, label_N, groups)
    if found.error < ROUNDING_ERROR:
        return _wilson_interval(found.value, found.units, found.quantile)
    centre = math.log(found.value / (1 - found.value))
    reach = found.quantile * found.error / (found.value * (1 - found.value))
    return _expit(centre - reach), _expit(centre + reach)


def difference_interval(difference_N: Floats, groups: Clusters) -> Interval | None:
    """Return the interval of a mean difference, within -1 and 1; see :func:`accuracy_interval`."""
    if groups.count < MIN_UNITS:
        return None
    found = _jackknife(difference_N, np.zeros(len(difference_N), dtype=np.int64), groups)
    reach = found.quantile * found.error
    if found.error < ROUNDING_ERROR:
        # No patient differs from the others: the upper end of Wilson's interval of 0 bounds the share of those that do.
        reach = _wilson_interval(0.0, found.units, found.quantile)[1]
    return max(-1.0, found.value - reach), min(1.0, found.value + reach)


def _jackknife(value_N: Bools | Floats, label_N: Ints, groups: Clusters) -> _Estimate:
    """Estimate the mean over the classes present of the mean value of each.

    A patient's deviation is the change of the mean when the patient is left out. Its square counts with the share of
    slices that are left, class by class: Wu, Annals of Statistics 14, 1986, 1261-1295, section 5, which is the
    correction for few clusters of Bell and McCaffrey, Survey Methodology 28, 2002, 169-181. If a class has one patient
    only, leaving the patient out leaves the class out.
    """
    classes, class_N = np.unique(label_N, return_inverse=True)
    pair_P, place_N = np.unique(groups.cluster_N * len(classes) + class_N, return_inverse=True)
    cluster_P, class_P = np.divmod(pair_P, len(classes))
    size_P, sum_P = np.bincount(place_N), np.bincount(place_N, weights=value_N)
    size_C, sum_C = (np.bincount(class_P, weights=column) for column in (size_P, sum_P))
    mean_C, weight_P = sum_C / size_C, size_P / size_C[class_P]
    residual_P = sum_P / size_C[class_P] - mean_C[class_P] * weight_P
    alone_P = (mean_C - mean_C.mean())[class_P] * len(classes) / max(1, len(classes) - 1)
    left_P = 1 - weight_P
    deviation_P = np.where(left_P > 0, residual_P / np.sqrt(np.where(left_P > 0, left_P, 1)), alone_P)
    square_G = (np.bincount(cluster_P, weights=deviation_P, minlength=groups.count) / len(classes)) ** 2
    design_G = np.bincount(cluster_P, weights=weight_P**2, minlength=groups.count).astype(np.float64)
    quantile = stdtrit(_degrees_of_freedom(square_G, design_G), (1 + LEVEL) / 2)
    error = math.sqrt(square_G.sum())
    return _Estimate(value=float(mean_C.mean()), error=error, quantile=float(quantile), units=groups.count)


def _degrees_of_freedom(square_G: Floats, design_G: Floats) -> float:
    """Return the degrees of freedom of a variance that is a sum over patients, at least 1.

    They are one less than the number of patients that contribute (Satterthwaite, Biometrics Bulletin 2, 1946, 110-114):
    by the sizes of the patients or, if that is less, by their squared deviations, which for normal ones differ by their
    kurtosis of 3. The latter count if few patients have almost all errors.
    """
    by_deviation = NORMAL_KURTOSIS * _effective_number(square_G)
    return max(1.0, min(_effective_number(design_G), by_deviation) - 1)


def _effective_number(part_G: Floats) -> float:
    """Return how many equal parts have the same sum and sum of squares; all of them if all are 0."""
    scaled_G = part_G / max(part_G.max(), np.finfo(np.float64).tiny)
    squares = float((scaled_G**2).sum())
    return float(scaled_G.sum()) ** 2 / squares if squares else float(len(part_G))


def _wilson_interval(share: float, units: int, t: float) -> Interval:
    """Return the score interval of Wilson, JASA 22, 1927, for clusters that all have the same share."""
    z = t * t / units
    centre, reach = share + z / 2, t * math.sqrt(share * (1 - share) / units + z / (4 * units))
    return max(0.0, (centre - reach) / (1 + z)), min(1.0, (centre + reach) / (1 + z))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
