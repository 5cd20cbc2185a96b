"""The usual classifiers: they are scikit-learn's, they repeat, and odd training sets are answered."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC
from threadpoolctl import threadpool_info, threadpool_limits

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation import classifiers
from hsadml_dist.evaluation.baselines import THUMBNAIL_SIDE
from hsadml_dist.evaluation.classifiers import (
    METHODS,
    TREES,
    MethodSettings,
    class_probabilities,
    classify,
    predict_all,
)
from hsadml_dist.evaluation.embed import Embeddings

Sample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def drawn() -> Sample:
    """Three overlapping clouds: training rows, their classes, test rows, their classes."""
    generator = np.random.default_rng(0)
    label = np.arange(240) % 3
    row = generator.normal(size=(3, 8))[label] + 1.5 * generator.normal(size=(240, 8))
    return row[:160], label[:160], row[160:], label[160:]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_answers_are_scikit_learns_on_unit_rows(drawn: Sample) -> None:
    train, label, test, true = drawn
    expected = {
        "svm": SVC(kernel="rbf"),
        "logistic_regression": LogisticRegression(max_iter=1000),
        "random_forest": RandomForestClassifier(n_estimators=TREES, random_state=4),
        "naive_bayes": GaussianNB(),
    }
    said = classify(train, label, test, seed=4)
    assert tuple(said) == METHODS == tuple(expected)
    for name, model in expected.items():
        assert said[name].dtype == np.int64
        # The rows are rounded to 2**-26: one border case may change sides.
        assert (said[name] != model.fit(unit(train), label).predict(unit(test))).sum() <= 1, name
        assert 0.5 < (said[name] == true).mean() < 1, name


def test_only_the_direction_of_a_row_counts(drawn: Sample) -> None:
    train, label, test, _ = drawn
    length = np.exp2(np.random.default_rng(1).integers(-5, 6, (240, 1)))
    one, other = (
        classify(train, label, test, seed=0),
        classify(train * length[:160], label, test * length[160:], seed=0),
    )
    assert {name: said.tolist() for name, said in one.items()} == {name: said.tolist() for name, said in other.items()}


def test_the_seed_and_the_data_decide_alone(drawn: Sample) -> None:
    train, label, test, _ = drawn
    first, again, other = (classify(train, label, test, seed=seed, most=60) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in METHODS)
    assert any((first[name] != other[name]).any() for name in METHODS)


def test_all_is_computed_by_one_thread_and_the_setting_is_given_back(
    drawn: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fit, predict = LogisticRegression.fit, LogisticRegression.predict

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    def watched_fit(self: LogisticRegression, *data: np.ndarray) -> LogisticRegression:
        seen.extend(threads())
        return fit(self, *data)

    def watched_predict(self: LogisticRegression, rows: np.ndarray) -> np.ndarray:
        seen.extend(threads())
        return predict(self, rows)

    monkeypatch.setattr(LogisticRegression, "fit", watched_fit)
    monkeypatch.setattr(LogisticRegression, "predict", watched_predict)
    with threadpool_limits(limits=2):
        before = threads()
        classify(*drawn[:3], seed=0)
        assert 2 in before == threads()
    assert set(seen) == {1} and len(seen) >= 2


def test_at_most_so_many_rows_are_learnt_from_and_no_class_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[np.ndarray] = []
    fit = GaussianNB.fit

    def spy(self: GaussianNB, rows: np.ndarray, label: np.ndarray) -> GaussianNB:
        learnt.append(label)
        return fit(self, rows, label)

    monkeypatch.setattr(GaussianNB, "fit", spy)
    row = np.random.default_rng(0).normal(size=(400, 4))
    label = np.repeat([0, 1, 2], [300, 98, 2])
    classify(row, label, row[:5], seed=0, most=40)
    assert len(learnt) == 1 and len(learnt[0]) == 40
    assert np.abs(np.bincount(learnt[0]) - [30, 9.8, 1]).max() <= 1.1


def test_a_missing_class_is_never_said(drawn: Sample) -> None:
    train, label, test, _ = drawn
    said = classify(train[label != 1], label[label != 1], test, seed=0)
    assert all(set(answer.tolist()) == {0, 2} for answer in said.values())


@pytest.mark.parametrize(("label", "usual"), [([2, 2, 2], 2), ([2, 1, 1], 1), ([2, 1, 0], 0)])
def test_one_class_or_one_place_leaves_only_the_most_frequent_class(label: list[int], usual: int) -> None:
    same = np.ones((3, 4)) * [[1], [2], [4]]
    said = classify(same, np.array(label), np.random.default_rng(0).normal(size=(5, 4)), seed=0)
    assert {name: answer.tolist() for name, answer in said.items()} == {name: [usual] * 5 for name in METHODS}


def test_different_rows_of_one_class_say_that_class() -> None:
    row = np.random.default_rng(0).normal(size=(9, 4))
    assert all((answer == 7).all() for answer in classify(row, np.full(9, 7), row, seed=0).values())


def test_nothing_to_judge_is_no_error() -> None:
    row = np.random.default_rng(0).normal(size=(9, 4))
    assert {len(said) for said in classify(row, np.arange(9) % 2, row[:0], seed=0).values()} == {0}


def test_no_rows_to_learn_from_and_diverged_rows_are_refused() -> None:
    row, label = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 2
    with pytest.raises(DataError, match="no training embeddings"):
        classify(row[:0], label[:0], row, seed=0)
    broken = row.copy()
    broken[3, 2] = np.nan
    for train, test in ((broken, row), (row, broken)):
        with pytest.raises(DataError, match="1 of 9 embeddings hold NaN or infinity"):
            classify(train, label, test, seed=0)


def test_no_warning_reaches_the_user(drawn: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsadml_dist.evaluation.classifiers._STEPS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify(*drawn[:3], seed=0)


def test_scikit_learn_is_loaded_late() -> None:
    at_the_top = ast.parse(Path(classifiers.__file__).read_text()).body
    imported = [ast.unparse(node) for node in at_the_top if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imported) > 5 and not [line for line in imported if "sklearn" in line or "threadpoolctl" in line]


CLASSES, DIMENSIONS = 3, 6


def embedded(count: int, seed: int) -> tuple[Embeddings, np.ndarray]:
    """Return rows that lean to their class's axis, with pixels that know nothing."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count)
    emb = rng.normal(0, 0.6, (count, DIMENSIONS)) + 2 * np.eye(CLASSES, DIMENSIONS)[label]
    pixels = rng.integers(0, 256, (count, THUMBNAIL_SIDE * THUMBNAIL_SIDE)).astype(np.uint8)
    return Embeddings(emb_ND=torch.from_numpy(emb).float(), thumbnail_NP=torch.from_numpy(pixels)), label


@pytest.fixture(scope="module")
def parts():
    return embedded(30, 0), embedded(80, 1)


def ask(parts, *, classifiers: bool, references: int = 80):
    (test, _), (known, label) = parts
    few = Embeddings(emb_ND=known.emb_ND[:references], thumbnail_NP=known.thumbnail_NP[:references])
    asking = MethodSettings(block=16, classifiers=classifiers, seed=0)
    return predict_all(
        test, few, label[:references], torch.eye(CLASSES, DIMENSIONS), SoloComm(torch.device("cpu")), asking
    )


def test_every_method_answers_and_slow_loops_agree(parts):
    answers = ask(parts, classifiers=True)
    (test, label), (known, known_label) = parts
    one, others = (torch.nn.functional.normalize(part.emb_ND.double(), dim=1).numpy() for part in (test, known))
    order = np.argsort(-(one @ others.T), axis=1, kind="stable")
    for method, votes in (("knn", 1), ("knn_5", 5), ("knn_11", 11), ("knn_21", 21)):
        for place, near in enumerate(order):
            counts = np.bincount(known_label[near[:votes]], minlength=CLASSES)
            expected = next(known_label[at] for at in near[:votes] if counts[known_label[at]] == counts.max())
            assert answers.predicted[method][place] == expected
    np.testing.assert_array_equal(answers.neighbour_NK, order[:, :21])
    np.testing.assert_array_equal(answers.predicted["head"], one[:, :CLASSES].argmax(axis=1))
    pixels, others = (part.thumbnail_NP.numpy().astype(float) for part in (test, known))
    nearest = [((others - row) ** 2).sum(axis=1).argmin() for row in pixels]
    np.testing.assert_array_equal(answers.predicted["raw_pixels"], known_label[nearest])
    for method in ("svm", "logistic_regression", "random_forest", "naive_bayes"):
        assert np.mean(answers.predicted[method] == label) > 0.8, method
    assert all(said.shape == (30,) and said.dtype == np.int64 for said in answers.predicted.values())


def test_without_classifiers_the_rest_is_the_same(parts):
    whole, part = ask(parts, classifiers=True).predicted, ask(parts, classifiers=False).predicted
    assert whole.keys() - part.keys() == {"svm", "logistic_regression", "random_forest", "naive_bayes"}
    for method, said in part.items():
        np.testing.assert_array_equal(said, whole[method])


def test_no_more_neighbours_vote_than_there_are(parts):
    answers = ask(parts, classifiers=False, references=7)
    assert {"knn", "knn_5"} <= answers.predicted.keys() and "knn_11" not in answers.predicted
    assert answers.neighbour_NK.shape == (30, 7)


@pytest.mark.parametrize("scale", [None, 1.0, 64.0])
def test_probabilities_are_those_of_the_loss(scale):
    emb, centres = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    found = class_probabilities(emb, centres, scale).numpy()
    for row, (cosines, norm) in enumerate([((0.6, 0.8), 5.0), ((0.0, 1.0), 2.0)]):
        weights = np.exp(np.array(cosines) * (norm if scale is None else scale))
        np.testing.assert_allclose(found[row], weights / weights.sum(), rtol=1e-12)
