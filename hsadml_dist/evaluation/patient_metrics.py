"""Metrics by patient: bootstrap intervals that resample whole patients, and majority votes over a patient's slices.

Shapes: N slices, C classes, G clusters (patients), K additive quantities, S resamples, P pairs of a case and a class
predicted for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hsadml_dist.evaluation.metrics import Bools, Floats, Ints

Statistic = Callable[[Floats], Floats]
Interval = tuple[float, float]

LEVEL = 0.95
MAX_CONFUSION_CLASSES = 256
"""Largest number of classes for which a result holds C x C values: 256 take half a megabyte of ``result.json``."""
UNDECIDED = -1
MAX_DRAWS = 1 << 22
"""Numbers drawn at a time; affects the memory use only."""


@dataclass(frozen=True, kw_only=True)
class PatientIds:
    """Keyed hashes of patients and exams, one entry per slice; None if unknown."""

    persons: Sequence[str | None]
    exams: Sequence[str | None]

    def distinct_patients(self) -> frozenset[str] | None:
        """Return the patients, or None if there are no slices or one has no patient id."""
        if not self.persons or None in self.persons:
            return None
        return frozenset(person for person in self.persons if person is not None)


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Groups of slices that are resampled as a whole.

    Attributes:
        unit: ``person``, ``exam`` or ``slice``: the coarsest unit that is known for every slice.
        cluster_N: Cluster of each slice, int64, from 0.
        count: Number of clusters.
    """

    unit: str
    cluster_N: Ints
    count: int


@dataclass(frozen=True, kw_only=True)
class PatientCases:
    """Cases, each a patient with one true class, and their predictions. A patient with two true classes is two cases.

    Attributes:
        persons: Patient of each case, ascending; cases of one patient by ascending class.
        predicted_K: Most frequent class predicted for the case's slices; :data:`UNDECIDED` for a tie.
    """

    persons: tuple[str, ...]
    label_K: Ints
    predicted_K: Ints


@dataclass(frozen=True, kw_only=True)
class PatientVote:
    """Accuracy of a method by patient, when each slice of the patient has one vote.

    Attributes:
        accuracy: Share of correct cases. A tie counts as incorrect, because any rule to break it would be arbitrary.
        cases: Number of cases; larger than ``persons`` if a patient has slices of two true classes.
        ties: Undecided cases.
    """

    accuracy: float
    persons: int
    cases: int
    ties: int


def clusters(persons: Sequence[str | None], exams: Sequence[str | None]) -> Clusters:
    """Group slices by patient; if a slice has no patient id, by exam; otherwise each slice is its own cluster."""
    for unit, ids in (("person", persons), ("exam", exams)):
        if ids and all(one is not None for one in ids):
            unique, cluster = np.unique(np.array(ids), return_inverse=True)
            return Clusters(unit=unit, cluster_N=cluster.astype(np.int64), count=len(unique))
    return Clusters(unit="slice", cluster_N=np.arange(len(persons), dtype=np.int64), count=len(persons))


def accuracy_tally(correct_N: Bools | Floats) -> Floats:
    """Return the additive quantities (N, 2) of :func:`tallied_accuracy`: correct (or the share that is) and 1."""
    return np.stack([correct_N.astype(np.float64), np.ones(len(correct_N))], axis=1)


def tallied_accuracy(total_SK: Floats) -> Floats:
    """Return the accuracy (S,) from sums of :func:`accuracy_tally`."""
    return total_SK[:, 0] / total_SK[:, 1]


def class_tally(correct_N: Bools | Floats, label_N: Ints, classes: int) -> Floats:
    """Return the additive quantities (N, 2 C) of :func:`tallied_balanced_accuracy`: an accuracy tally by class."""
    member_NC = np.eye(classes)[label_N]
    return np.concatenate([member_NC * correct_N[:, None], member_NC], axis=1)


def tallied_balanced_accuracy(total_SK: Floats) -> Floats:
    """Return the balanced accuracy (S,) from sums of :func:`class_tally`, without classes that a resample lacks."""
    correct_SC, all_SC = np.split(total_SK, 2, axis=1)
    share_SC = np.divide(correct_SC, all_SC, out=np.zeros_like(correct_SC), where=all_SC > 0)
    return share_SC.sum(axis=1) / (all_SC > 0).sum(axis=1)


def accuracy_interval(correct_N: Bools | Floats, groups: Clusters, *, resamples: int, seed: int) -> Interval | None:
    """Return the :func:`bootstrap_interval` of the accuracy, or of the mean share of correct predictions."""
    return bootstrap_interval(accuracy_tally(correct_N), groups, tallied_accuracy, resamples=resamples, seed=seed)


def balanced_interval(
    correct_N: Bools | Floats, label_N: Ints, classes: int, groups: Clusters, *, resamples: int, seed: int
) -> Interval | None:
    """Return that of the balanced accuracy; None above :data:`MAX_CONFUSION_CLASSES` classes, too."""
    if classes > MAX_CONFUSION_CLASSES:
        return None
    tally = class_tally(correct_N, label_N, classes)
    return bootstrap_interval(tally, groups, tallied_balanced_accuracy, resamples=resamples, seed=seed)


def bootstrap_interval(
    tally_NK: Floats, groups: Clusters, statistic: Statistic, *, resamples: int, seed: int, level: float = LEVEL
) -> Interval | None:
    """Return the percentile bootstrap interval of a statistic, resampling whole patients.

    Slices of one patient are similar, so resampling single slices would give intervals that are far too narrow.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; clusters in place of samples.

    Args:
        tally_NK: Contribution of each slice to each of K sums.
        groups: The patients, or the finest known substitute.
        statistic: Maps sums (S, K) to values (S,).
        resamples: Number of bootstrap samples, S.
        seed: Seed of these samples.
        level: Share of the bootstrap distribution inside the interval.

    Returns:
        The two ends, or None for fewer than two patients.
    """
    if groups.count < 2:
        return None
    sum_GK = np.zeros((groups.count, tally_NK.shape[1]))
    np.add.at(sum_GK, groups.cluster_N, tally_NK)
    values_S = np.concatenate([statistic(total) for total in _resample(sum_GK, resamples, seed)])
    low, high = np.quantile(values_S, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resample(sum_GK: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield sums over G clusters drawn with replacement, in chunks (S', K) that bound the memory."""
    count = len(sum_GK)
    generator = np.random.default_rng(seed)
    chunk = max(1, MAX_DRAWS // count)
    for start in range(0, resamples, chunk):
        yield generator.multinomial(count, np.full(count, 1 / count), size=min(chunk, resamples - start)) @ sum_GK


def patient_cases(predicted_N: Ints, label_N: Ints, persons: Sequence[str | None]) -> PatientCases | None:
    """Return each patient's majority class, or None if there are no slices or one has no patient id."""
    known = [person for person in persons if person is not None]
    if not known or len(known) < len(persons):
        return None
    unique, person_N = np.unique(np.array(known), return_inverse=True)
    classes = int(max(predicted_N.max(), label_N.max())) + 1
    case_K, case_N = np.unique(person_N.astype(np.int64) * classes + label_N, return_inverse=True)
    return PatientCases(
        persons=tuple(unique[case_K // classes].tolist()),
        label_K=case_K % classes,
        predicted_K=_majority_classes(case_N, predicted_N, len(case_K), classes),
    )


def _majority_classes(case_N: Ints, predicted_N: Ints, cases: int, classes: int) -> Ints:
    """Return the majority class of each case (K,), without a table of cases by classes."""
    pair_P, count_P = np.unique(case_N * classes + predicted_N, return_counts=True)
    case_P = pair_P // classes
    max_K = np.zeros(cases, dtype=count_P.dtype)
    np.maximum.at(max_K, case_P, count_P)
    first = count_P == max_K[case_P]
    predicted_K = np.full(cases, UNDECIDED, dtype=np.int64)
    predicted_K[case_P[first]] = pair_P[first] % classes
    predicted_K[np.bincount(case_P[first], minlength=cases) > 1] = UNDECIDED
    return predicted_K


def patient_vote(predicted_N: Ints, label_N: Ints, persons: Sequence[str | None]) -> PatientVote | None:
    """Return the accuracy of majority votes over each patient's slices; None as in :func:`patient_cases`."""
    found = patient_cases(predicted_N, label_N, persons)
    if found is None:
        return None
    return PatientVote(
        accuracy=float(np.mean(found.predicted_K == found.label_K)),
        persons=len(set(found.persons)),
        cases=len(found.persons),
        ties=int((found.predicted_K == UNDECIDED).sum()),
    )
