"""Run all classification methods on one set of query slices.

Methods: nearest neighbours, class centres, scikit-learn classifiers on the embeddings, and the baselines. The
scikit-learn classifiers use their default settings and are not tuned, so that no figure is the best of several tries.

Shapes: N gallery slices and M queries (:func:`classify`); N queries, R gallery slices, C classes, D components,
F features, K neighbours (:func:`predict_all`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.baselines import features, nearest_low_level, nearest_pixels_distributed
from hsadml_dist.evaluation.embed import Embeddings
from hsadml_dist.evaluation.knn import GRID, majority_label, nearest, nearest_distributed, round_to_grid
from hsadml_dist.evaluation.metrics import Floats, Ints, stratified
from hsadml_dist.evaluation.predictions import HEAD, KNN, LOW_LEVEL, RAW_PIXELS, VOTES

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


@dataclass(frozen=True, kw_only=True)
class MethodPredictions:
    """What the methods say; the same on all ranks.

    Attributes:
        predicted: Method to its predicted classes (N,), int64.
        neighbour_NK: Positions of the nearest references, nearest first, int64.
        cosine_NK: Their cosines, fp64.
        emb_ND: The test slices' embeddings, not normalised.
    """

    predicted: Mapping[str, Ints]
    neighbour_NK: Ints
    cosine_NK: np.ndarray
    emb_ND: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """How the methods are asked.

    Attributes:
        block: References compared at a time; bounds the memory and nothing else.
        classifiers: Whether scikit-learn's classifiers are fitted too.
        seed: What the classifiers that draw are drawn from.
    """

    block: int
    classifiers: bool
    seed: int


def predict_all(
    test: Embeddings, references: Embeddings, label_R: Ints, centre_CD: torch.Tensor, comm: Comm, asking: MethodSettings
) -> MethodPredictions:
    """Return every method's answers for the test slices of all ranks; all ranks take part.

    Args:
        test: This rank's test slices.
        references: This rank's references.
        label_R: The classes of all ranks' references, int64.
        centre_CD: The class centres.
        comm: The ranks.
        asking: How.
    """
    most = min(max(VOTES), len(label_R))
    cosine, neighbour = nearest_distributed(test.emb_ND, references.emb_ND, comm, k=most, block=asking.block)
    alike = nearest_pixels_distributed(test.thumbnail_NP, references.thumbnail_NP, comm, block=asking.block)
    whole = {"test": _whole(test, comm), "references": _whole(references, comm)}
    emb_ND = whole["test"].emb_ND
    centre = nearest(emb_ND, centre_CD.detach().to(emb_ND.dtype), k=1, block=asking.block)[1][:, 0]
    label_NK = torch.as_tensor(label_R, device=neighbour.device)[neighbour]
    said = {KNN: _numbers(label_NK[:, 0])}
    said |= {f"{KNN}_{k}": _numbers(majority_label(label_NK[:, :k])) for k in VOTES if k <= most}
    said |= {HEAD: _numbers(centre), RAW_PIXELS: label_R[_numbers(alike)]}
    said |= comm.broadcast_object(
        _by_one_rank(**whole, label_R=label_R, asking=asking) if comm.topology.is_rank_zero else {}
    )
    return MethodPredictions(
        predicted=said, neighbour_NK=_numbers(neighbour), cosine_NK=cosine.cpu().double().numpy(), emb_ND=emb_ND
    )


def class_probabilities(emb_ND: torch.Tensor, centre_CD: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Return the loss's own probabilities (N, C), fp64: softmax over scale times the cosine to each class centre.

    Args:
        emb_ND: Embeddings, not normalised.
        centre_CD: Class centres, not normalised.
        scale: The loss's scale; None: each embedding's norm (A-Softmax).
    """
    emb, centres = emb_ND.double(), centre_CD.detach().double()
    cos_NC = functional.normalize(emb, dim=1) @ functional.normalize(centres, dim=1).T
    return torch.softmax((emb.norm(dim=1, keepdim=True) if scale is None else scale) * cos_NC, dim=1)


def _whole(part: Embeddings, comm: Comm) -> Embeddings:
    """Return the slices of all ranks."""
    return Embeddings(emb_ND=comm.all_gather_rows(part.emb_ND), thumbnail_NP=comm.all_gather_rows(part.thumbnail_NP))


def _by_one_rank(*, test: Embeddings, references: Embeddings, label_R: Ints, asking: MethodSettings) -> dict[str, Ints]:
    """Return the answers that are not worth spreading over ranks."""
    test_NF, reference_RF = (features(part.thumbnail_NP.cpu().numpy()) for part in (test, references))
    said = {LOW_LEVEL: label_R[nearest_low_level(test_NF, reference_RF)]}
    if asking.classifiers:
        unit_R, unit_N = (
            functional.normalize(part.emb_ND.double(), dim=1).cpu().numpy() for part in (references, test)
        )
        said |= classify(unit_R, label_R, unit_N, seed=asking.seed)
    return said


def _numbers(rows: torch.Tensor) -> Ints:
    return rows.cpu().numpy().astype(np.int64)
