"""Confidence intervals that treat the slices of a patient as a cluster, for few patients as for many.

Slices of one patient resemble one another, so an interval as if they were independent would be far too narrow. The
variance here is that of the delete-one jackknife over patients (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 11), with Student's t in place of the normal quantile, and with fewer degrees of freedom if patients
differ in their number of slices (as Satterthwaite, Biometrics Bulletin 2, 1946, 110-114, with the squared weights of
the patients as variances). Shares get their interval on the logit scale, which keeps it within 0 and 1.

``benchmarks/coverage.py`` measures how often such intervals contain the true value.

Shapes: N slices, C classes, G clusters (patients), K additive quantities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from hsadml_dist.evaluation.metrics import Bools, Floats, Ints
from hsadml_dist.evaluation.patient_metrics import Clusters

Statistic = Callable[[Floats], Floats]
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


def interval_caution(units: int) -> Caution | None:
    """Return a code if there are so few clusters that intervals are missing or rough."""
    if units < MIN_UNITS:
        return "too_few_units"
    return "few_units" if units < FEW_UNITS else None


def accuracy_interval(correct_N: Bools | Floats, groups: Clusters, *, level: float = LEVEL) -> Interval | None:
    """Return the interval of the mean of ``correct_N``: predictions that are correct, or the share of trainings.

    Args:
        correct_N: Values from 0 to 1.
        groups: The patients, or the finest known substitute.
        level: Share of such intervals that contain the true value, approximately.

    Returns:
        The two ends, from 0 to 1, or None for fewer than :data:`MIN_UNITS` patients.
    """
    tally_NK = np.stack([correct_N.astype(np.float64), np.ones(len(correct_N))], axis=1)
    return _share_interval(tally_NK, groups, _mean, _weights(groups), level)


def balanced_interval(
    correct_N: Bools | Floats, label_N: Ints, classes: int, groups: Clusters, *, level: float = LEVEL
) -> Interval | None:
    """Return the interval of the balanced accuracy; None above :data:`MAX_CONFUSION_CLASSES` classes, too.

    Args:
        correct_N: See :func:`accuracy_interval`, as for the further arguments.
        label_N: True classes.
        classes: Number of classes, C.
    """
    if classes > MAX_CONFUSION_CLASSES:
        return None
    member_NC = np.eye(classes)[label_N]
    tally_NK = np.concatenate([member_NC * correct_N[:, None], member_NC], axis=1)
    return _share_interval(tally_NK, groups, _balanced_mean, _class_weights(label_N, classes, groups), level)


def difference_interval(difference_N: Floats, groups: Clusters, *, level: float = LEVEL) -> Interval | None:
    """Return the interval of a mean difference, within -1 and 1; see :func:`accuracy_interval`."""
    if groups.count < MIN_UNITS:
        return None
    sum_GK = _cluster_sums(np.stack([difference_N, np.ones(len(difference_N))], axis=1), groups)
    mean, variance = _jackknife(sum_GK, _mean)
    reach = _t_quantile(_weights(groups), level) * math.sqrt(variance)
    return max(-1.0, mean - reach), min(1.0, mean + reach)


def _share_interval(
    tally_NK: Floats, groups: Clusters, statistic: Statistic, weight_G: Floats, level: float
) -> Interval | None:
    if groups.count < MIN_UNITS:
        return None
    share, variance = _jackknife(_cluster_sums(tally_NK, groups), statistic)
    t = _t_quantile(weight_G, level)
    if variance <= 0 or not 0 < share < 1:
        return _wilson_interval(share, groups.count, t)
    centre, reach = math.log(share / (1 - share)), t * math.sqrt(variance) / (share * (1 - share))
    return _expit(centre - reach), _expit(centre + reach)


def _jackknife(sum_GK: Floats, statistic: Statistic) -> tuple[float, float]:
    """Return the statistic of the total and its variance, from the totals without each cluster."""
    total_K, count = sum_GK.sum(axis=0), len(sum_GK)
    value = float(statistic(total_K[None])[0])
    without_G = statistic(total_K - sum_GK)
    return value, (count - 1) / count * float(((without_G - value) ** 2).sum())


def _wilson_interval(share: float, units: int, t: float) -> Interval:
    """Return the score interval of Wilson, JASA 22, 1927, for clusters that all have the same share."""
    z = t * t / units
    centre, reach = share + z / 2, t * math.sqrt(share * (1 - share) / units + z / (4 * units))
    return max(0.0, (centre - reach) / (1 + z)), min(1.0, (centre + reach) / (1 + z))


def _t_quantile(weight_G: Floats, level: float) -> float:
    """Return the quantile of Student's t for the degrees of freedom of clusters with these variances."""
    freedom = float(weight_G.sum() ** 2 / (weight_G**2).sum()) - 1
    return float(stdtrit(max(freedom, 1.0), (1 + level) / 2))


def _weights(groups: Clusters) -> Floats:
    """Return the part (G,) of each cluster in the variance of a mean over slices: its squared share of the slices."""
    size_G = np.bincount(groups.cluster_N, minlength=groups.count)
    return (size_G / size_G.sum()) ** 2


def _class_weights(label_N: Ints, classes: int, groups: Clusters) -> Floats:
    """Return the part (G,) of each cluster in the variance of a mean over classes."""
    size_GC = np.bincount(groups.cluster_N * classes + label_N, minlength=groups.count * classes)
    size_GC = size_GC.reshape(groups.count, classes)
    size_C = size_GC.sum(axis=0)
    return ((size_GC[:, size_C > 0] / size_C[size_C > 0]) ** 2).sum(axis=1)


def _cluster_sums(tally_NK: Floats, groups: Clusters) -> Floats:
    sum_GK = np.zeros((groups.count, tally_NK.shape[1]))
    np.add.at(sum_GK, groups.cluster_N, tally_NK)
    return sum_GK


def _mean(total_SK: Floats) -> Floats:
    """Return the means (S,) of sums (S, 2) of values and ones."""
    return total_SK[:, 0] / total_SK[:, 1]


def _balanced_mean(total_SK: Floats) -> Floats:
    """Return the means (S,) over classes of the class means, from sums (S, 2 C); absent classes do not count."""
    correct_SC, all_SC = np.split(total_SK, 2, axis=1)
    share_SC = np.divide(correct_SC, all_SC, out=np.zeros_like(correct_SC), where=all_SC > 0)
    return share_SC.sum(axis=1) / (all_SC > 0).sum(axis=1)


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
