"""Accuracy, confusion matrix and stratified sampling against scikit-learn and counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from hsadml_dist.evaluation import metrics
from hsadml_dist.evaluation.metrics import MAX_CONFUSED_PAIRS, ConfusedPair, Ints, stratified, summarise_confusions


@pytest.fixture
def sample() -> tuple[Ints, Ints]:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 300)
    return label, np.where(generator.random(300) < 0.6, label, generator.integers(0, 4, 300))


def test_accuracy_and_confusion_matrix_equal_scikit_learn(sample: tuple[Ints, Ints]) -> None:
    label, predicted = sample
    table = metrics.confusion_matrix(label, predicted, 4)
    assert table.tolist() == confusion_matrix(label, predicted).tolist()
    assert metrics.accuracy(predicted == label) == pytest.approx(accuracy_score(label, predicted), abs=1e-15)
    assert metrics.balanced_accuracy(predicted == label, label) == pytest.approx(
        balanced_accuracy_score(label, predicted), abs=1e-15
    )


def test_balanced_accuracy_ignores_classes_that_do_not_occur() -> None:
    label, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert metrics.confusion_matrix(label, predicted, 4).shape == (4, 4)
    assert metrics.balanced_accuracy(predicted == label, label) == 0.75


def test_summarise_confusions_of_a_few_slices() -> None:
    label, predicted = np.array([0, 0, 0, 4, 4, 7, 9]), np.array([0, 4, 4, 4, 4, 0, 4])
    found = summarise_confusions(label, predicted)
    assert (found.classes, found.all_right, found.none_right, found.pairs) == (4, 1, 2, 3)
    assert found.worst == (
        ConfusedPair(label=0, said=4, slices=2),
        ConfusedPair(label=7, said=0, slices=1),
        ConfusedPair(label=9, said=4, slices=1),
    )


def test_summarise_confusions_of_many_classes_equals_counting_pairs() -> None:
    generator = np.random.default_rng(0)
    label, predicted = generator.integers(0, 300, 5000), generator.integers(0, 40, 5000)
    found = summarise_confusions(label, predicted)
    pairs = Counter((one, other) for one, other in zip(label.tolist(), predicted.tolist(), strict=True) if one != other)
    expected = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:MAX_CONFUSED_PAIRS]
    assert [((one.label, one.said), one.slices) for one in found.worst] == expected
    assert (found.pairs, found.classes) == (len(pairs), len(set(label.tolist())))


def test_summarise_confusions_without_errors_has_no_pairs() -> None:
    found = summarise_confusions(np.array([3, 3, 5]), np.array([3, 3, 5]))
    assert (found.classes, found.all_right, found.none_right, found.pairs, found.worst) == (2, 2, 0, 0, ())


def labels(*counts: int) -> np.ndarray:
    label = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(9).permutation(label)


def test_stratified_takes_all_of_a_few_slices() -> None:
    assert stratified(labels(3, 4), limit=7, seed=0).tolist() == list(range(7))
    assert stratified(np.empty(0, dtype=np.int64), limit=7, seed=0).tolist() == []


def test_stratified_returns_distinct_ascending_positions() -> None:
    sampled = stratified(labels(500, 300, 200), limit=100, seed=0)
    assert len(sampled) == 100 and (np.diff(sampled) > 0).all() and sampled[0] >= 0 and sampled[-1] < 1000


def test_stratified_keeps_class_shares() -> None:
    label = labels(500, 300, 200)
    assert np.bincount(label[stratified(label, limit=100, seed=0)]).tolist() == [50, 30, 20]


@pytest.mark.parametrize("limit", [3, 5, 17, 250, 999])
def test_stratified_keeps_rare_classes(limit: int) -> None:
    label = labels(990, 1, 9)
    count = np.bincount(label[stratified(label, limit=limit, seed=1)], minlength=3)
    assert count.sum() == limit and (count >= 1).all() and (count <= [990, 1, 9]).all()


def test_stratified_samples_more_classes_than_the_limit() -> None:
    sampled = stratified(labels(*[2] * 50), limit=10, seed=0)
    assert len(set(sampled.tolist())) == 10


def test_stratified_depends_on_the_seed_and_reaches_every_slice() -> None:
    label = labels(20, 10)
    first = stratified(label, limit=12, seed=0)
    assert first.tolist() == stratified(label, limit=12, seed=0).tolist()
    reached = [stratified(label, limit=12, seed=seed) for seed in range(40)]
    assert np.unique(np.concatenate(reached)).tolist() == list(range(30))
