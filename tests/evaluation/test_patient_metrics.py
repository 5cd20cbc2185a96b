"""Patient votes against a slow loop, and the units of slices."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.patient_metrics import UNDECIDED, PatientVote, clusters, patient_cases, patient_vote


@pytest.fixture
def sample() -> tuple[Ints, Ints]:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 300)
    return label, np.where(generator.random(300) < 0.6, label, generator.integers(0, 4, 300))


@pytest.mark.parametrize(
    ("persons", "exams", "unit", "count"),
    [
        (["a", "b", "a"], ["1", "2", "3"], "person", 2),
        (["a", None, "a"], ["1", "2", "2"], "exam", 2),
        ([None] * 3, ["1", None, "3"], "slice", 3),
        ([None] * 3, [None] * 3, "slice", 3),
    ],
)
def test_clusters_use_the_coarsest_unit_known_for_all_slices(
    persons: list[str | None], exams: list[str | None], unit: str, count: int
) -> None:
    found = clusters(persons, exams)
    assert (found.unit, found.count) == (unit, count)
    assert len(set(found.cluster_N.tolist())) == count


def slow_votes(predicted: list[int], label: list[int], persons: list[str]) -> dict[tuple[str, int], int | None]:
    """Map each patient and true class to the majority class, or None for a tie."""
    found: dict[tuple[str, int], int | None] = {}
    for case in sorted(set(zip(persons, label, strict=True))):
        votes = Counter(s for s, *owner in zip(predicted, persons, label, strict=True) if tuple(owner) == case)
        (first, most), *others = votes.most_common()
        found[case] = None if others and others[0][1] == most else first
    return found


@pytest.mark.parametrize("seed", range(5))
def test_patient_vote_equals_slow_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    persons = [f"p{number}" for number in generator.integers(0, 30, 120)]
    class_of = dict(zip(sorted(set(persons)), generator.integers(0, 4, 30), strict=False))
    label = np.array([class_of[person] for person in persons])
    label[:10] = generator.integers(0, 4, 10)
    predicted = np.where(generator.random(120) < 0.5, label, generator.integers(0, 4, 120))
    expected = slow_votes(predicted.tolist(), label.tolist(), persons)
    correct = sum(voted == true for (_, true), voted in expected.items())
    ties = sum(voted is None for voted in expected.values())
    found, vote = patient_cases(predicted, label, persons), patient_vote(predicted, label, persons)
    assert found is not None and vote is not None
    assert list(zip(found.persons, found.label_K.tolist(), strict=True)) == list(expected)
    assert found.predicted_K.tolist() == [UNDECIDED if voted is None else voted for voted in expected.values()]
    assert vote.cases == len(expected) > vote.persons == len(class_of) and 0 < ties == vote.ties
    assert vote.accuracy == pytest.approx(correct / len(expected), abs=1e-15) and 0 < correct < len(expected)


def test_patient_vote_takes_the_majority() -> None:
    predicted, label = np.array([1, 1, 0, 2, 2]), np.array([1, 1, 1, 2, 2])
    assert patient_vote(predicted, label, list("aaabb")) == PatientVote(accuracy=1, persons=2, cases=2, ties=0)


def test_patient_vote_counts_a_tie_as_incorrect() -> None:
    found = patient_vote(np.array([1, 0]), np.array([1, 1]), ["a", "a"])
    assert found == PatientVote(accuracy=0, persons=1, cases=1, ties=1)


def test_patient_vote_counts_two_true_classes_of_a_patient_as_two_cases() -> None:
    found = patient_vote(np.array([0, 0, 1]), np.array([0, 0, 1]), ["a", "a", "a"])
    assert found == PatientVote(accuracy=1, persons=1, cases=2, ties=0)


@pytest.mark.parametrize("persons", [["a", None], [None, None], []])
def test_patient_vote_needs_all_patient_ids(persons: list[str | None]) -> None:
    rows = np.zeros(len(persons), dtype=np.int64)
    assert patient_vote(rows, rows, persons) is None and patient_cases(rows, rows, persons) is None
