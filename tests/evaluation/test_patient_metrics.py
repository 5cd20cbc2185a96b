"""Patient votes against a slow loop, and bootstrap intervals against a slow loop and their coverage."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from hsadml_dist.evaluation import patient_metrics
from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.patient_metrics import (
    UNDECIDED,
    Clusters,
    Interval,
    PatientVote,
    accuracy_tally,
    bootstrap_interval,
    class_tally,
    clusters,
    patient_cases,
    patient_vote,
    tallied_accuracy,
    tallied_balanced_accuracy,
)


@pytest.fixture
def sample() -> tuple[Ints, Ints]:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 300)
    return label, np.where(generator.random(300) < 0.6, label, generator.integers(0, 4, 300))


def test_tallies_sum_to_accuracy_and_balanced_accuracy(sample: tuple[Ints, Ints]) -> None:
    label, predicted = sample
    plain = accuracy_tally(predicted == label).sum(axis=0, keepdims=True)
    by_class = class_tally(predicted == label, label, 5).sum(axis=0, keepdims=True)
    assert tallied_accuracy(plain)[0] == pytest.approx(accuracy_score(label, predicted), abs=1e-15)
    assert tallied_balanced_accuracy(by_class)[0] == pytest.approx(balanced_accuracy_score(label, predicted), abs=1e-15)


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


def slow_interval(correct: list[bool], person: list[int], resamples: int, seed: int) -> tuple[float, float]:
    """Draw patients one by one and count their slices."""
    generator = np.random.default_rng(seed)
    names = sorted(set(person))
    values = []
    for _ in range(resamples):
        drawn = [names[generator.integers(len(names))] for _ in names]
        hits = [hit for name in drawn for hit, owner in zip(correct, person, strict=True) if owner == name]
        values.append(sum(hits) / len(hits))
    low, high = np.percentile(values, [2.5, 97.5])
    return low, high


def group_by(person: np.ndarray) -> Clusters:
    return clusters([str(name) for name in person], [None] * len(person))


def test_bootstrap_interval_equals_slow_loop() -> None:
    generator = np.random.default_rng(5)
    person = np.sort(generator.integers(0, 25, 120))
    correct = generator.random(120) < generator.random(25)[person]
    fast = bootstrap_interval(accuracy_tally(correct), group_by(person), tallied_accuracy, resamples=20000, seed=1)
    assert fast == pytest.approx(slow_interval(correct.tolist(), person.tolist(), 3000, 2), abs=0.012)


def test_bootstrap_interval_depends_on_the_seed_and_not_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    groups, tally = group_by(np.sort(generator.integers(0, 20, 60))), accuracy_tally(generator.random(60) < 0.7)

    def draw(seed: int) -> Interval | None:
        return bootstrap_interval(tally, groups, tallied_accuracy, resamples=500, seed=seed)

    first = draw(0)
    assert first == draw(0) != draw(1)
    monkeypatch.setattr(patient_metrics, "MAX_DRAWS", 64)
    assert first == draw(0)


def coverage(cluster_of: np.ndarray, trials: int = 300) -> float:
    """Return the share of trials whose interval contains the true accuracy .7; slices of a patient are all alike."""
    generator, inside = np.random.default_rng(11), 0
    person = np.repeat(np.arange(60), 5)
    for trial in range(trials):
        correct = (generator.random(60) < 0.7)[person]
        tally = accuracy_tally(correct)
        span = bootstrap_interval(tally, group_by(cluster_of), tallied_accuracy, resamples=400, seed=trial)
        assert span is not None
        inside += span[0] <= 0.7 <= span[1]
    return inside / trials


def test_bootstrap_interval_has_its_coverage_by_patient_and_not_by_slice() -> None:
    assert 0.90 <= coverage(np.repeat(np.arange(60), 5)) <= 0.985
    assert coverage(np.arange(300), trials=150) < 0.75


def test_bootstrap_interval_of_a_single_patient_is_none() -> None:
    tally = accuracy_tally(np.array([True, False]))
    assert bootstrap_interval(tally, group_by(np.array([0, 0])), tallied_accuracy, resamples=100, seed=0) is None


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
