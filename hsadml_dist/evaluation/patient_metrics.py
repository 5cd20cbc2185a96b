"""The verdict by person: what a method says of someone of whom it sees several slices.

Shapes: N slices, K cases (a person with one true class), P pairs of a case and a class said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hsadml_dist.evaluation.metrics import Ints

UNDECIDED = -1


@dataclass(frozen=True, kw_only=True)
class PatientCases:
    """What is said of each case. Who has slices of two true classes is a case for each of them.

    Attributes:
        persons: Each case's person, ascending; cases of one person by ascending class.
        label_K: True classes, int64.
        said_K: The class that most of the case's slices are said to be of; :data:`UNDECIDED` where several are equal.
    """

    persons: tuple[str, ...]
    label_K: Ints
    said_K: Ints


@dataclass(frozen=True, kw_only=True)
class PatientVote:
    """How often a method is right of a person when each of its slices has one vote.

    Attributes:
        accuracy: Share of the cases that are right; a tie is wrong, because any rule to break it would be a choice
            of ours.
        persons: Number of persons.
        cases: Number of cases; above ``persons`` where someone has slices of two true classes.
        ties: Cases that are undecided.
    """

    accuracy: float
    persons: int
    cases: int
    ties: int


def cases(said_N: Ints, label_N: Ints, persons: Sequence[str | None]) -> PatientCases | None:
    """Return the majority of each person's slices, or None where there is no slice or one names no person."""
    names = [person for person in persons if person is not None]
    if not names or len(names) < len(persons):
        return None
    unique, person_N = np.unique(np.array(names), return_inverse=True)
    classes = int(max(said_N.max(), label_N.max())) + 1
    case_K, of_N = np.unique(person_N.astype(np.int64) * classes + label_N, return_inverse=True)
    return PatientCases(
        persons=tuple(unique[case_K // classes].tolist()),
        label_K=case_K % classes,
        said_K=_majorities(of_N, said_N, len(case_K), classes),
    )


def _majorities(of_N: Ints, said_N: Ints, number: int, classes: int) -> Ints:
    """Return what most slices of each case are said to be (K,), without a table of cases by classes."""
    kind_P, count_P = np.unique(of_N * classes + said_N, return_counts=True)
    case_P = kind_P // classes
    most_K = np.zeros(number, dtype=count_P.dtype)
    np.maximum.at(most_K, case_P, count_P)
    first = count_P == most_K[case_P]
    said_K = np.full(number, UNDECIDED, dtype=np.int64)
    said_K[case_P[first]] = kind_P[first] % classes
    said_K[np.bincount(case_P[first], minlength=number) > 1] = UNDECIDED
    return said_K


def person_vote(said_N: Ints, label_N: Ints, persons: Sequence[str | None]) -> PatientVote | None:
    """Return how often the majority of a person's slices is right.

    Args:
        said_N: What a method says of each slice.
        label_N: True classes.
        persons: Whose slice it is, one entry a slice.

    Returns:
        The vote, or None where there is no slice or one names no person.
    """
    found = cases(said_N, label_N, persons)
    if found is None:
        return None
    return PatientVote(
        accuracy=float(np.mean(found.said_K == found.label_K)),
        persons=len(set(found.persons)),
        cases=len(found.persons),
        ties=int((found.said_K == UNDECIDED).sum()),
    )
