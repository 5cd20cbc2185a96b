"""Figures against scikit-learn and slow loops; intervals against what they promise."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from hsadml_dist.evaluation import metrics as scores
from hsadml_dist.evaluation.metrics import MAX_CONFUSED_PAIRS, ConfusedPair, confusions, stratified


@pytest.fixture
def drawn() -> tuple[scores.Ints, scores.Ints]:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 300)
    return label, np.where(generator.random(300) < 0.6, label, generator.integers(0, 4, 300))


def test_figures_agree_with_scikit_learn(drawn: tuple[scores.Ints, scores.Ints]) -> None:
    label, said = drawn
    table = scores.confusion(label, said, 4)
    assert table.tolist() == confusion_matrix(label, said).tolist()
    assert scores.accuracy(said == label) == pytest.approx(accuracy_score(label, said), abs=1e-15)
    assert scores.balanced_accuracy(said == label, label) == pytest.approx(
        balanced_accuracy_score(label, said), abs=1e-15
    )


def test_a_class_that_does_not_occur_is_left_out_of_the_balance() -> None:
    label, said = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert scores.confusion(label, said, 4).shape == (4, 4)
    assert scores.balanced_accuracy(said == label, label) == 0.75


def test_tallies_sum_to_the_figures(drawn: tuple[scores.Ints, scores.Ints]) -> None:
    label, said = drawn
    plain = scores.accuracy_tally(said == label).sum(axis=0, keepdims=True)
    by_class = scores.class_tally(said == label, label, 5).sum(axis=0, keepdims=True)
    assert scores.share(plain)[0] == pytest.approx(accuracy_score(label, said), abs=1e-15)
    assert scores.mean_share(by_class)[0] == pytest.approx(balanced_accuracy_score(label, said), abs=1e-15)


@pytest.mark.parametrize(
    ("persons", "exams", "unit", "count"),
    [
        (["a", "b", "a"], ["1", "2", "3"], "person", 2),
        (["a", None, "a"], ["1", "2", "2"], "exam", 2),
        ([None] * 3, ["1", None, "3"], "slice", 3),
        ([None] * 3, [None] * 3, "slice", 3),
    ],
)
def test_clusters_are_the_coarsest_unit_that_all_slices_name(
    persons: list[str | None], exams: list[str | None], unit: str, count: int
) -> None:
    found = scores.clusters(persons, exams)
    assert (found.unit, found.count) == (unit, count)
    assert len(set(found.of_N.tolist())) == count


def slow_interval(correct: list[bool], person: list[int], resamples: int, seed: int) -> tuple[float, float]:
    """Draw persons one by one and count each of their slices."""
    generator = np.random.default_rng(seed)
    names = sorted(set(person))
    values = []
    for _ in range(resamples):
        drawn = [names[generator.integers(len(names))] for _ in names]
        hits = [right for name in drawn for right, whose in zip(correct, person, strict=True) if whose == name]
        values.append(sum(hits) / len(hits))
    low, high = np.percentile(values, [2.5, 97.5])
    return low, high


def of(person: np.ndarray) -> scores.Clusters:
    return scores.clusters([str(name) for name in person], [None] * len(person))


def test_the_interval_is_that_of_a_slow_loop_up_to_the_draws() -> None:
    generator = np.random.default_rng(5)
    person = np.sort(generator.integers(0, 25, 120))
    correct = generator.random(120) < generator.random(25)[person]
    fast = scores.bootstrap_interval(scores.accuracy_tally(correct), of(person), scores.share, resamples=20000, seed=1)
    assert fast == pytest.approx(slow_interval(correct.tolist(), person.tolist(), 3000, 2), abs=0.012)


def test_the_interval_is_seeded_and_does_not_depend_on_how_the_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    whose, tally = of(np.sort(generator.integers(0, 20, 60))), scores.accuracy_tally(generator.random(60) < 0.7)

    def draw(seed: int) -> scores.Interval | None:
        return scores.bootstrap_interval(tally, whose, scores.share, resamples=500, seed=seed)

    first = draw(0)
    assert first == draw(0) != draw(1)
    monkeypatch.setattr(scores, "_DRAWS_AT_A_TIME", 64)
    assert first == draw(0)


def coverage(cluster_of: np.ndarray, trials: int = 300) -> float:
    """Share of trials whose interval holds the true accuracy .7; a person's slices all share one fate."""
    generator, inside = np.random.default_rng(11), 0
    person = np.repeat(np.arange(60), 5)
    for trial in range(trials):
        correct = (generator.random(60) < 0.7)[person]
        tally = scores.accuracy_tally(correct)
        span = scores.bootstrap_interval(tally, of(cluster_of), scores.share, resamples=400, seed=trial)
        assert span is not None
        inside += span[0] <= 0.7 <= span[1]
    return inside / trials


def test_intervals_by_person_hold_the_truth_and_intervals_by_slice_do_not() -> None:
    assert 0.90 <= coverage(np.repeat(np.arange(60), 5)) <= 0.985
    assert coverage(np.arange(300), trials=150) < 0.75


def test_a_single_person_has_no_interval() -> None:
    tally = scores.accuracy_tally(np.array([True, False]))
    assert scores.bootstrap_interval(tally, of(np.array([0, 0])), scores.share, resamples=100, seed=0) is None


def test_a_few_slices_by_hand() -> None:
    label, said = np.array([0, 0, 0, 4, 4, 7, 9]), np.array([0, 4, 4, 4, 4, 0, 4])
    found = confusions(label, said)
    assert (found.classes, found.all_right, found.none_right, found.pairs) == (4, 1, 2, 3)
    assert found.worst == (
        ConfusedPair(label=0, said=4, slices=2),
        ConfusedPair(label=7, said=0, slices=1),
        ConfusedPair(label=9, said=4, slices=1),
    )


def test_many_classes_as_a_count_of_pairs_has_them() -> None:
    generator = np.random.default_rng(0)
    label, said = generator.integers(0, 300, 5000), generator.integers(0, 40, 5000)
    found = confusions(label, said)
    pairs = Counter((one, other) for one, other in zip(label.tolist(), said.tolist(), strict=True) if one != other)
    expected = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:MAX_CONFUSED_PAIRS]
    assert [((one.label, one.said), one.slices) for one in found.worst] == expected
    assert (found.pairs, found.classes) == (len(pairs), len(set(label.tolist())))


def test_nothing_wrong_leaves_no_pair() -> None:
    found = confusions(np.array([3, 3, 5]), np.array([3, 3, 5]))
    assert (found.classes, found.all_right, found.none_right, found.pairs, found.worst) == (2, 2, 0, 0, ())


def labels(*counts: int) -> np.ndarray:
    label = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(9).permutation(label)


def test_few_slices_are_all_taken() -> None:
    assert stratified(labels(3, 4), most=7, seed=0).tolist() == list(range(7))
    assert stratified(np.empty(0, dtype=np.int64), most=7, seed=0).tolist() == []


def test_positions_are_ascending_distinct_and_as_many_as_asked_for() -> None:
    drawn = stratified(labels(500, 300, 200), most=100, seed=0)
    assert len(drawn) == 100 and (np.diff(drawn) > 0).all() and drawn[0] >= 0 and drawn[-1] < 1000


def test_each_class_keeps_its_share() -> None:
    label = labels(500, 300, 200)
    assert np.bincount(label[stratified(label, most=100, seed=0)]).tolist() == [50, 30, 20]


@pytest.mark.parametrize("most", [3, 5, 17, 250, 999])
def test_a_rare_class_keeps_at_least_one_slice_and_none_gets_more_than_it_has(most: int) -> None:
    label = labels(990, 1, 9)
    count = np.bincount(label[stratified(label, most=most, seed=1)], minlength=3)
    assert count.sum() == most and (count >= 1).all() and (count <= [990, 1, 9]).all()


def test_more_classes_than_room_are_drawn_from_alike() -> None:
    drawn = stratified(labels(*[2] * 50), most=10, seed=0)
    assert len(set(drawn.tolist())) == 10


def test_the_draw_follows_its_seed_and_reaches_every_slice() -> None:
    label = labels(20, 10)
    first = stratified(label, most=12, seed=0)
    assert first.tolist() == stratified(label, most=12, seed=0).tolist()
    reached = [stratified(label, most=12, seed=seed) for seed in range(40)]
    assert np.unique(np.concatenate(reached)).tolist() == list(range(30))
