"""All methods at once, against slow loops; the same on any number of ranks (test_verdict.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hsadml_dist.comm import SoloComm
from hsadml_dist.evaluation.control import THUMBNAIL_SIDE
from hsadml_dist.evaluation.embed import Embeddings
from hsadml_dist.evaluation.methods import MethodSettings, class_probabilities, predict_all

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
