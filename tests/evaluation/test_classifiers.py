"""Predictions of all methods against slow loops and scikit-learn."""

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
    class_probabilities,
    classify,
    predict_all,
)
from hsadml_dist.evaluation.embed import Embeddings
from hsadml_dist.losses.margins import LOSSES, MarginSettings, build_margin

Sample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def sample() -> Sample:
    """Return three overlapping clouds: gallery rows, their classes, query rows, their classes."""
    generator = np.random.default_rng(0)
    label = np.arange(240) % 3
    row = generator.normal(size=(3, 8))[label] + 1.5 * generator.normal(size=(240, 8))
    return row[:160], label[:160], row[160:], label[160:]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_classify_equals_scikit_learn_on_unit_rows(sample: Sample) -> None:
    train, label, test, true = sample
    expected = {
        "svm": SVC(kernel="rbf"),
        "logistic_regression": LogisticRegression(max_iter=1000),
        "random_forest": RandomForestClassifier(n_estimators=TREES, random_state=4),
        "naive_bayes": GaussianNB(),
    }
    predicted = classify(train, label, test, seed=4)
    assert tuple(predicted) == METHODS == tuple(expected)
    for name, model in expected.items():
        assert predicted[name].dtype == np.int64
        # The rows are rounded to 2**-26: one border case may change sides.
        assert (predicted[name] != model.fit(unit(train), label).predict(unit(test))).sum() <= 1, name
        assert 0.5 < (predicted[name] == true).mean() < 1, name


def test_classify_ignores_row_lengths(sample: Sample) -> None:
    train, label, test, _ = sample
    length = np.exp2(np.random.default_rng(1).integers(-5, 6, (240, 1)))
    one, other = (
        classify(train, label, test, seed=0),
        classify(train * length[:160], label, test * length[160:], seed=0),
    )
    assert all((one[name] == other[name]).all() for name in METHODS)


def test_classify_depends_on_seed_and_data_alone(sample: Sample) -> None:
    train, label, test, _ = sample
    first, again, other = (classify(train, label, test, seed=seed, limit=60) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in METHODS)
    assert any((first[name] != other[name]).any() for name in METHODS)


def test_classify_uses_one_thread_and_restores_the_setting(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
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
        classify(*sample[:3], seed=0)
        assert 2 in before == threads()
    assert set(seen) == {1} and len(seen) >= 2


def test_classify_fits_on_a_stratified_sample_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[np.ndarray] = []
    fit = GaussianNB.fit

    def spy(self: GaussianNB, rows: np.ndarray, label: np.ndarray) -> GaussianNB:
        learnt.append(label)
        return fit(self, rows, label)

    monkeypatch.setattr(GaussianNB, "fit", spy)
    row = np.random.default_rng(0).normal(size=(400, 4))
    label = np.repeat([0, 1, 2], [300, 98, 2])
    classify(row, label, row[:5], seed=0, limit=40)
    assert len(learnt) == 1 and len(learnt[0]) == 40
    assert np.abs(np.bincount(learnt[0]) - [30, 9.8, 1]).max() <= 1.1


def test_classify_never_predicts_a_missing_class(sample: Sample) -> None:
    train, label, test, _ = sample
    predicted = classify(train[label != 1], label[label != 1], test, seed=0)
    assert all(set(labels.tolist()) == {0, 2} for labels in predicted.values())


@pytest.mark.parametrize(("label", "most_frequent"), [([2, 2, 2], 2), ([2, 1, 1], 1), ([2, 1, 0], 0)])
def test_classify_of_equal_rows_predicts_the_most_frequent_class(label: list[int], most_frequent: int) -> None:
    same = np.ones((3, 4)) * [[1], [2], [4]]
    predicted = classify(same, np.array(label), np.random.default_rng(0).normal(size=(5, 4)), seed=0)
    assert {name: labels.tolist() for name, labels in predicted.items()} == {
        name: [most_frequent] * 5 for name in METHODS
    }


def test_classify_with_a_single_class_predicts_it() -> None:
    row = np.random.default_rng(0).normal(size=(9, 4))
    assert all((labels == 7).all() for labels in classify(row, np.full(9, 7), row, seed=0).values())


def test_classify_accepts_no_queries() -> None:
    row = np.random.default_rng(0).normal(size=(9, 4))
    assert {len(predicted) for predicted in classify(row, np.arange(9) % 2, row[:0], seed=0).values()} == {0}


def test_classify_refuses_empty_gallery_and_non_finite_rows() -> None:
    row, label = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 2
    with pytest.raises(DataError, match="gallery"):
        classify(row[:0], label[:0], row, seed=0)
    broken = row.copy()
    broken[3, 2] = np.nan
    for train, test in ((broken, row), (row, broken)):
        with pytest.raises(DataError, match="1 of 9 embeddings"):
            classify(train, label, test, seed=0)


def test_classify_suppresses_convergence_warnings(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsadml_dist.evaluation.classifiers.LOGISTIC_STEPS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify(*sample[:3], seed=0)


def test_scikit_learn_is_not_imported_at_the_top() -> None:
    at_the_top = ast.parse(Path(classifiers.__file__).read_text()).body
    imported = [ast.unparse(node) for node in at_the_top if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imported) > 5 and not [line for line in imported if "sklearn" in line or "threadpoolctl" in line]


CLASSES, DIMENSIONS = 3, 6


def random_embeddings(count: int, seed: int) -> tuple[Embeddings, np.ndarray]:
    """Return rows around the axis of their class, with random pixels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count)
    emb = rng.normal(0, 0.6, (count, DIMENSIONS)) + 2 * np.eye(CLASSES, DIMENSIONS)[label]
    pixels = rng.integers(0, 256, (count, THUMBNAIL_SIDE * THUMBNAIL_SIDE)).astype(np.uint8)
    return Embeddings(emb_ND=torch.from_numpy(emb).float(), thumbnail_NP=torch.from_numpy(pixels)), label


@pytest.fixture(scope="module")
def parts():
    return random_embeddings(30, 0), random_embeddings(80, 1)


def predict(parts, *, classifiers: bool, gallery: int = 80):
    (test, _), (known, label) = parts
    few = Embeddings(emb_ND=known.emb_ND[:gallery], thumbnail_NP=known.thumbnail_NP[:gallery])
    centres, comm = torch.eye(CLASSES, DIMENSIONS), SoloComm(torch.device("cpu"))
    return predict_all(test, few, label[:gallery], centres, comm, block=16, classifiers=classifiers, seed=0)


def test_predict_all_equals_slow_loops(parts):
    found = predict(parts, classifiers=True)
    (test, label), (known, known_label) = parts
    one, others = (torch.nn.functional.normalize(part.emb_ND.double(), dim=1).numpy() for part in (test, known))
    order = np.argsort(-(one @ others.T), axis=1, kind="stable")
    for method, votes in (("knn", 1), ("knn_5", 5), ("knn_11", 11), ("knn_21", 21)):
        for row, neighbours in enumerate(order):
            counts = np.bincount(known_label[neighbours[:votes]], minlength=CLASSES)
            expected = next(known_label[at] for at in neighbours[:votes] if counts[known_label[at]] == counts.max())
            assert found.predicted[method][row] == expected
    np.testing.assert_array_equal(found.neighbour_NK, order[:, :21])
    np.testing.assert_array_equal(found.predicted["head"], one[:, :CLASSES].argmax(axis=1))
    pixels, others = (part.thumbnail_NP.numpy().astype(float) for part in (test, known))
    nearest = [((others - row) ** 2).sum(axis=1).argmin() for row in pixels]
    np.testing.assert_array_equal(found.predicted["raw_pixels"], known_label[nearest])
    for method in ("svm", "logistic_regression", "random_forest", "naive_bayes"):
        assert np.mean(found.predicted[method] == label) > 0.8, method
    assert all(predicted.shape == (30,) and predicted.dtype == np.int64 for predicted in found.predicted.values())


def test_predict_all_without_classifiers_keeps_the_other_methods(parts):
    whole, part = predict(parts, classifiers=True).predicted, predict(parts, classifiers=False).predicted
    assert whole.keys() - part.keys() == {"svm", "logistic_regression", "random_forest", "naive_bayes"}
    for method, predicted in part.items():
        np.testing.assert_array_equal(predicted, whole[method])


def test_predict_all_skips_votes_of_more_neighbours_than_gallery_slices(parts):
    found = predict(parts, classifiers=False, gallery=7)
    assert {"knn", "knn_5"} <= found.predicted.keys() and "knn_11" not in found.predicted
    assert found.neighbour_NK.shape == (30, 7)


@pytest.mark.parametrize("scale", [None, 1.0, 64.0])
def test_class_probabilities_equal_softmax_of_scaled_cosines(scale):
    emb, centres = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    settings = MarginSettings(scale=scale)
    found = class_probabilities(emb, centres, build_margin("sphereface", settings)).numpy()
    for row, (cosines, norm) in enumerate([((0.6, 0.8), 5.0), ((0.0, 1.0), 2.0)]):
        weights = np.exp(np.array(cosines) * (norm if scale is None else scale))
        np.testing.assert_allclose(found[row], weights / weights.sum(), rtol=1e-12)


def test_class_probabilities_of_sphereface2_are_its_binary_ones_divided_by_their_sum():
    emb, centres = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])
    found = class_probabilities(emb, centres, build_margin("sphereface2", MarginSettings(scale=5.0)), -1.5).numpy()
    for row, cosines in enumerate([(0.6, 0.8, -0.6), (0.0, 1.0, 0.0)]):
        logits = [5 * (2 * ((cosine + 1) / 2) ** 3 - 1) - 1.5 for cosine in cosines]
        binary = np.array([1 / (1 + np.exp(-logit)) for logit in logits])
        np.testing.assert_allclose(found[row], binary / binary.sum(), rtol=1e-6)


def test_class_probabilities_of_sphereface2_far_from_all_centres_are_finite():
    emb, centres = torch.tensor([[-1.0, -1.0]]), torch.eye(2)
    found = class_probabilities(emb, centres, build_margin("sphereface2", MarginSettings(scale=900.0)), -900.0)
    np.testing.assert_allclose(found.numpy(), [[0.5, 0.5]])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_class_probabilities_of_every_loss_rank_the_centres_by_cosine(name):
    emb, centres = torch.tensor([[3.0, 1.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    (found,) = class_probabilities(emb, centres, build_margin(name), 0.5)
    assert found.argsort().tolist() == [0, 2, 1] and float(found.sum()) == pytest.approx(1, abs=1e-12)
