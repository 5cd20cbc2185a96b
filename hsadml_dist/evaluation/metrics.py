"""Accuracy, confusion matrix, patient-level bootstrap intervals, and stratified subsampling.

Shapes: N slices, C classes, G clusters (patients), K additive quantities, S resamples, P pairs of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Interval = tuple[float, float]

LEVEL = 0.95
_DRAWS_AT_A_TIME = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Which slices belong together when an interval is drawn.

    Attributes:
        unit: ``person``, ``exam`` or ``slice``: the coarsest that every slice names.
        of_N: Each slice's cluster, int64, from 0.
        count: Number of clusters.
    """

    unit: str
    of_N: Ints
    count: int


def clusters(persons: Sequence[str | None], exams: Sequence[str | None]) -> Clusters:
    """Return clusters of slices by person; where a slice names none, by exam; else each slice alone."""
    for unit, names in (("person", persons), ("exam", exams)):
        if names and all(name is not None for name in names):
            unique, of = np.unique(np.array(names), return_inverse=True)
            return Clusters(unit=unit, of_N=of.astype(np.int64), count=len(unique))
    return Clusters(unit="slice", of_N=np.arange(len(persons), dtype=np.int64), count=len(persons))


def confusion(label_N: Ints, predicted_N: Ints, classes: int) -> Ints:
    """Return counts (C, C): row the true class, column the predicted one."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)


def accuracy(correct_N: npt.NDArray[np.bool_]) -> float:
    """Return the share of slices that are right."""
    return float(np.mean(correct_N))


def balanced_accuracy(correct_N: npt.NDArray[np.bool_] | Floats, label_N: Ints) -> float:
    """Return the mean over the classes that occur of the share of each class's slices that are right.

    Args:
        correct_N: Whether each slice is right, or how often it is, as a share.
        label_N: True classes.
    """
    all_C, right_C = np.bincount(label_N), np.bincount(label_N, weights=correct_N)
    return float(np.mean(right_C[all_C > 0] / all_C[all_C > 0]))


def accuracy_tally(correct_N: npt.NDArray[np.bool_]) -> Floats:
    """Return the additive quantities (N, 2) of :func:`share`: right or not, and 1."""
    return np.stack([correct_N.astype(np.float64), np.ones(len(correct_N))], axis=1)


def share(total_SK: Floats) -> Floats:
    """Return the accuracy (S,) of sums of :func:`accuracy_tally`."""
    return total_SK[:, 0] / total_SK[:, 1]


def class_tally(correct_N: npt.NDArray[np.bool_], label_N: Ints, classes: int) -> Floats:
    """Return the additive quantities (N, 2 C) of :func:`mean_share`: :func:`accuracy_tally` for each class apart."""
    member_NC = np.eye(classes)[label_N]
    return np.concatenate([member_NC * correct_N[:, None], member_NC], axis=1)


def mean_share(total_SK: Floats) -> Floats:
    """Return the balanced accuracy (S,) of sums of :func:`class_tally`; classes that a resample lacks are left out."""
    right_SC, all_SC = np.split(total_SK, 2, axis=1)
    share_SC = np.divide(right_SC, all_SC, out=np.zeros_like(right_SC), where=all_SC > 0)
    return share_SC.sum(axis=1) / (all_SC > 0).sum(axis=1)


def bootstrap_interval(
    tally_NK: Floats, of: Clusters, statistic: Statistic, *, resamples: int, seed: int, level: float = LEVEL
) -> Interval | None:
    """Return the percentile bootstrap interval of a statistic when whole persons are drawn again.

    Slices of one person are alike, so that slices drawn one by one would give intervals far too narrow.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; clusters in place of samples.

    Args:
        tally_NK: What each slice adds to each of K sums.
        of: The persons, or what stands for them.
        statistic: Maps sums (S, K) to values (S,).
        resamples: Number of bootstrap samples, S.
        seed: Seed of the draws.
        level: Share of the bootstrap distribution inside.

    Returns:
        The two ends, or None where fewer than two persons leave nothing to draw from.
    """
    if of.count < 2:
        return None
    sum_GK = np.zeros((of.count, tally_NK.shape[1]))
    np.add.at(sum_GK, of.of_N, tally_NK)
    values_S = np.concatenate([statistic(total) for total in _resampled(sum_GK, resamples, seed)])
    low, high = np.quantile(values_S, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(sum_GK: Floats, resamples: int, seed: int) -> list[Floats]:
    """Return sums over G clusters drawn with replacement, in pieces (S', K) that bound the memory."""
    count = len(sum_GK)
    generator = np.random.default_rng(seed)
    piece = max(1, _DRAWS_AT_A_TIME // count)
    totals = []
    for start in range(0, resamples, piece):
        drawn_SG = generator.multinomial(count, np.full(count, 1 / count), size=min(piece, resamples - start))
        totals.append(drawn_SG @ sum_GK)
    return totals


MAX_CONFUSED_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Slices of one class that are taken for another: the labels of both, and how many."""

    label: int
    said: int
    slices: int


@dataclass(frozen=True, kw_only=True)
class ConfusionSummary:
    """How the slices of the classes come out, and which classes are mixed up most.

    Attributes:
        classes: Classes with test slices.
        all_right: Those of them with every slice right.
        none_right: Those with no slice right.
        pairs: Number of different pairs (true class, class said) among the wrong slices.
        worst: The pairs with most slices, at most :data:`MAX_CONFUSED_PAIRS`; of equal ones the lower labels first.
    """

    classes: int
    all_right: int
    none_right: int
    pairs: int
    worst: tuple[ConfusedPair, ...]


def confusions(label_N: Ints, said_N: Ints) -> ConfusionSummary:
    """Return what is taken for what; memory and time grow with the slices, not with the classes."""
    wrong_N = label_N != said_N
    pair_P2, count_P = np.unique(np.stack([label_N, said_N], axis=1)[wrong_N], axis=0, return_counts=True)
    # A stable sort: pairs come by label, and equal counts keep that order.
    worst = np.argsort(-count_P, kind="stable")[:MAX_CONFUSED_PAIRS]
    present_C, of_N = np.unique(label_N, return_inverse=True)
    wrong_C = np.bincount(of_N, weights=wrong_N, minlength=len(present_C))
    return ConfusionSummary(
        classes=len(present_C),
        all_right=int((wrong_C == 0).sum()),
        none_right=int((wrong_C == np.bincount(of_N, minlength=len(present_C))).sum()),
        pairs=len(count_P),
        worst=tuple(
            ConfusedPair(label=int(pair_P2[place, 0]), said=int(pair_P2[place, 1]), slices=int(count_P[place]))
            for place in worst
        ),
    )


def stratified(label_N: Ints, *, most: int, seed: int) -> Ints:
    """Return the positions (K,) of at most ``most`` slices, ascending, drawn without replacement class by class.

    Each class keeps its share, rounded by largest remainders (of equal ones, the lower class's first), and at least
    one slice. Above ``most`` classes that cannot be: then slices are drawn from all alike.

    Args:
        label_N: Each slice's class.
        most: Slices to draw; as many or fewer are all taken.
        seed: Seed of the draw.

    Returns:
        Positions, int64: the same for the same labels and seed.
    """
    if len(label_N) <= most:
        return np.arange(len(label_N), dtype=np.int64)
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    present_C, count_C = np.unique(label_N, return_counts=True)
    if len(present_C) > most:
        return np.sort(order_N[:most])
    quota_C = 1 + _apportioned(count_C - 1, most - len(present_C))
    parts = [order_N[label_N[order_N] == label][:quota] for label, quota in zip(present_C, quota_C, strict=True)]
    return np.sort(np.concatenate(parts))


def _apportioned(count_C: Ints, room: int) -> Ints:
    """Return ``room`` shared in proportion to the counts, in whole numbers; a share never exceeds its count."""
    share_C, remainder_C = np.divmod(count_C * room, count_C.sum())
    left = room - int(share_C.sum())
    share_C[np.argsort(-remainder_C, kind="stable")[:left]] += 1
    return share_C
