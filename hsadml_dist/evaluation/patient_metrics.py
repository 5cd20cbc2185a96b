"""Slices grouped by patient, and majority votes over a patient's slices.

Shapes: N slices, K cases, P pairs of a case and a class predicted for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hsadml_dist.evaluation.metrics import Ints

UNDECIDED = -1


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
    """Groups of slices that are not independent of one another.

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
