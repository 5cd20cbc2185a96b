"""Classifiers that learn from the references' embeddings and are asked about the test slices'.

The paper judges embeddings by several classifiers beside the nearest neighbour: what a representation is worth should
not hang on one of them. Each is scikit-learn's with its usual settings; none is tuned, so that no figure is the best
of several tries.

Shapes: N reference slices, M test slices, D components.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.draw import stratified
from hsadml_dist.evaluation.knn import GRID, round_to_grid
from hsadml_dist.evaluation.scores import Floats, Ints

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

METHODS = ("svm", "logistic_regression", "random_forest", "naive_bayes")
TREES = 100

_STEPS = 1000


def classify(
    train_ND: npt.NDArray[np.floating],
    label_N: Ints,
    test_MD: npt.NDArray[np.floating],
    *,
    seed: int,
    most: int = 10000,
) -> dict[str, Ints]:
    """Return what each of :data:`METHODS` says of each test slice, int64 arrays (M,).

    Rows are scaled to unit length first, as for the neighbours. Of more than ``most`` training rows only ``most`` are
    learnt from, because the time of a support vector machine grows with their square: a seeded draw without
    replacement in which every class keeps its share and at least one row (:func:`stratified`).

    The same rows, labels and seed give the same answers whatever the number of threads. Another processor may add in
    another order; only a slice that lies on a border between classes to the last bits could then change sides.

    Args:
        train_ND: Embeddings to learn from, of any length.
        label_N: Their classes; classes may be missing. Where there is only one, or all rows are the same, every
            answer is the most frequent class, of equally frequent ones the lowest.
        test_MD: Embeddings to judge; may be none.
        seed: Seed of the draw and of the random forest.
        most: Training rows learnt from at most.

    Raises:
        DataError: No training rows, or a component that is not finite.
    """
    if not len(train_ND):
        raise DataError("no training embeddings to learn from: the classifiers need at least one")
    kept_N = stratified(label_N, most=most, seed=seed)
    train, label, test = _unit(train_ND)[kept_N], label_N[kept_N], _unit(test_MD)
    if not len(test) or (label == label[0]).all() or (train == train[0]).all():
        usual = np.bincount(label).argmax()
        return {method: np.full(len(test), usual, dtype=np.int64) for method in METHODS}
    return _answers(_models(seed), train, label, test)


def _unit(rows_ND: npt.NDArray[np.floating]) -> Floats:
    """Return rows of unit length, rounded as the neighbours' are."""
    return round_to_grid(torch.tensor(rows_ND)).numpy() / GRID


def _models(seed: int) -> Mapping[str, ClassifierMixin]:
    # Imported late: scikit-learn takes 1.5 s, which only a verdict should pay for.
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.svm import SVC

    models = (
        SVC(kernel="rbf", C=1.0, gamma="scale"),
        LogisticRegression(C=1.0, solver="lbfgs", max_iter=_STEPS),
        RandomForestClassifier(n_estimators=TREES, random_state=seed % 2**32, n_jobs=1),
        GaussianNB(),
    )
    return dict(zip(METHODS, models, strict=True))


def _answers(models: Mapping[str, Any], train_ND: Floats, label_N: Ints, test_MD: Floats) -> dict[str, Ints]:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread: how many share a sum decides its last bits.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Only the logistic regression warns so. Its objective is strictly convex: after so many steps it is near its
        # one minimum, and going on would move borders by less than the draw of the folds does.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {name: model.fit(train_ND, label_N).predict(test_MD).astype(np.int64) for name, model in models.items()}
