"""The vote by person against a slow loop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hsadml_dist.evaluation.patient_metrics import UNDECIDED, PatientVote, cases, person_vote


def slow(said: list[int], label: list[int], persons: list[str]) -> dict[tuple[str, int], int | None]:
    """Map each person and true class to the class voted for, or None for a tie."""
    found: dict[tuple[str, int], int | None] = {}
    for case in sorted(set(zip(persons, label, strict=True))):
        votes = Counter(s for s, *whose in zip(said, persons, label, strict=True) if tuple(whose) == case)
        (first, most), *others = votes.most_common()
        found[case] = None if others and others[0][1] == most else first
    return found


@pytest.mark.parametrize("seed", range(5))
def test_votes_are_those_of_a_slow_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    persons = [f"p{number}" for number in generator.integers(0, 30, 120)]
    of = dict(zip(sorted(set(persons)), generator.integers(0, 4, 30), strict=False))
    label = np.array([of[person] for person in persons])
    label[:10] = generator.integers(0, 4, 10)
    said = np.where(generator.random(120) < 0.5, label, generator.integers(0, 4, 120))
    expected = slow(said.tolist(), label.tolist(), persons)
    right = sum(voted == true for (_, true), voted in expected.items())
    ties = sum(voted is None for voted in expected.values())
    found, vote = cases(said, label, persons), person_vote(said, label, persons)
    assert found is not None and vote is not None
    assert list(zip(found.persons, found.label_K.tolist(), strict=True)) == list(expected)
    assert found.said_K.tolist() == [UNDECIDED if voted is None else voted for voted in expected.values()]
    assert vote.cases == len(expected) > vote.persons == len(of) and 0 < ties == vote.ties
    assert vote.accuracy == pytest.approx(right / len(expected), abs=1e-15) and 0 < right < len(expected)


def test_a_majority_outvotes_single_slices() -> None:
    said, label = np.array([1, 1, 0, 2, 2]), np.array([1, 1, 1, 2, 2])
    assert person_vote(said, label, list("aaabb")) == PatientVote(accuracy=1, persons=2, cases=2, ties=0)


def test_a_tie_is_wrong_even_with_the_true_class_in_it() -> None:
    found = person_vote(np.array([1, 0]), np.array([1, 1]), ["a", "a"])
    assert found == PatientVote(accuracy=0, persons=1, cases=1, ties=1)


def test_two_true_classes_of_one_person_are_two_cases() -> None:
    found = person_vote(np.array([0, 0, 1]), np.array([0, 0, 1]), ["a", "a", "a"])
    assert found == PatientVote(accuracy=1, persons=1, cases=2, ties=0)


@pytest.mark.parametrize("persons", [["a", None], [None, None], []])
def test_unknown_persons_have_no_vote(persons: list[str | None]) -> None:
    rows = np.zeros(len(persons), dtype=np.int64)
    assert person_vote(rows, rows, persons) is None and cases(rows, rows, persons) is None
