"""Run all classification methods on one set of query slices.

The methods are nearest neighbours, class centres, scikit-learn classifiers on the embeddings, and the baselines. The
scikit-learn classifiers use their default settings and are not tuned, so that no figure is the best of several tries.

Shapes: N query slices, R gallery slices, C classes, D components, F features, K neighbours.
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
from hsadml_dist.evaluation.geometry import unit_on_grid
from hsadml_dist.evaluation.knn import GRID, majority_label, nearest, nearest_distributed
from hsadml_dist.evaluation.metrics import Floats, Ints, stratified
from hsadml_dist.evaluation.result import HEAD, KNN, LOW_LEVEL, RAW_PIXELS, VOTES
from hsadml_dist.losses.margins import MarginLoss

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

METHODS = ("svm", "logistic_regression", "random_forest", "naive_bayes")
TREES = 100
LOGISTIC_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class MethodPredictions:
    """Predictions (N,), int64, of all methods by name, the same on every rank.

    Attributes:
        neighbour_NK: Gallery positions of the nearest neighbours, nearest first, int64.
        cosine_NK: Their cosines, fp64.
        emb_ND: Embeddings of the queries, not normalised.
    """

    predicted: Mapping[str, Ints]
    neighbour_NK: Ints
    cosine_NK: np.ndarray
    emb_ND: torch.Tensor


def predict_all(
    queries: Embeddings,
    gallery: Embeddings,
    label_R: Ints,
    centre_CD: torch.Tensor,
    comm: Comm,
    *,
    block: int,
    classifiers: bool,
    seed: int,
) -> MethodPredictions:
    """Classify the queries of all ranks by every method. Collective: every rank must call it.

    Args:
        queries: Query slices of this rank.
        gallery: Gallery slices of this rank.
        label_R: Classes of the gallery slices of all ranks, int64.
        centre_CD: Class centres.
        comm: The ranks.
        block: Gallery slices compared at a time; affects the memory use only.
        classifiers: Fit scikit-learn's classifiers, too.
        seed: Seed of the classifiers.
    """
    most = min(max(VOTES), len(label_R))
    cosine, neighbour = nearest_distributed(queries.emb_ND, gallery.emb_ND, comm, k=most, block=block)
    pixels = nearest_pixels_distributed(queries.thumbnail_NP, gallery.thumbnail_NP, comm, block=block)
    queries, gallery = _all_ranks(queries, comm), _all_ranks(gallery, comm)
    centre = nearest(queries.emb_ND, centre_CD.detach().to(queries.emb_ND.dtype), k=1, block=block)[1][:, 0]
    label_NK = torch.as_tensor(label_R, device=neighbour.device)[neighbour]
    predicted = {KNN: _to_numpy(label_NK[:, 0])}
    predicted |= {f"{KNN}_{k}": _to_numpy(majority_label(label_NK[:, :k])) for k in VOTES if k <= most}
    predicted |= {HEAD: _to_numpy(centre), RAW_PIXELS: label_R[_to_numpy(pixels)]}
    # Not worth distributing: rank 0 computes the rest.
    if comm.topology.is_rank_zero:
        queries_NF, gallery_RF = (features(part.thumbnail_NP.cpu().numpy()) for part in (queries, gallery))
        predicted[LOW_LEVEL] = label_R[nearest_low_level(queries_NF, gallery_RF)]
        if classifiers:
            predicted |= classify(_unit_rows(gallery), label_R, _unit_rows(queries), seed=seed)
    sent = comm.broadcast_json({name: labels.tolist() for name, labels in predicted.items()})
    predicted = {name: np.array(labels, dtype=np.int64) for name, labels in sent.items()}
    return MethodPredictions(
        predicted=predicted,
        neighbour_NK=_to_numpy(neighbour),
        cosine_NK=cosine.cpu().double().numpy(),
        emb_ND=queries.emb_ND,
    )


def classify(
    gallery_RD: npt.NDArray[np.floating],
    label_R: Ints,
    queries_ND: npt.NDArray[np.floating],
    *,
    seed: int,
    limit: int = 10000,
) -> dict[str, Ints]:
    """Fit each of :data:`METHODS` on the gallery and return its predictions for the queries, int64 arrays (N,).

    Rows are first scaled to unit length, as for the nearest neighbours. Of a gallery of more than ``limit`` rows only a
    stratified sample of ``limit`` rows is used (:func:`stratified`), because the training time of a support vector
    machine grows with the square of their number.

    The same rows, labels and seed give the same predictions for any number of threads. Another processor may sum in
    another order; only a slice on the border between classes to the last bits could then change its class.

    Args:
        gallery_RD: Embeddings to fit on, of any length.
        label_R: Their classes; classes may be missing. With a single class, or equal rows only, every prediction is the
            most frequent class, the lowest of equally frequent ones.
        queries_ND: Embeddings to classify; may be empty.
        seed: Seed of the sample and of the random forest.
        limit: Largest number of gallery rows to fit on.

    Raises:
        DataError: The gallery is empty, or a component is not finite.
    """
    if not len(gallery_RD):
        raise DataError("gallery: it is empty; the classifiers need at least one embedding")
    kept_R = stratified(label_R, limit=limit, seed=seed)
    # Rounded as for the nearest neighbours.
    gallery, queries = unit_on_grid(gallery_RD)[kept_R] / GRID, unit_on_grid(queries_ND) / GRID
    label = label_R[kept_R]
    if not len(queries) or (label == label[0]).all() or (gallery == gallery[0]).all():
        most_frequent = np.bincount(label).argmax()
        return {method: np.full(len(queries), most_frequent, dtype=np.int64) for method in METHODS}
    return _fit_predict(_models(seed), gallery, label, queries)


def class_probabilities(
    emb_ND: torch.Tensor, centre_CD: torch.Tensor, loss: MarginLoss, bias: float | None = None
) -> torch.Tensor:
    """Return the probabilities (N, C), fp64, of the loss without its margin; each row sums to 1.

    Most losses are a softmax: of the scale times the cosine to each class centre. SphereFace2 is a binary
    classification per class: a sigmoid of the scale times the sharpened cosine plus the bias, divided by the sum over
    the classes.

    Args:
        emb_ND: Embeddings, not normalised.
        centre_CD: Class centres, not normalised.
        loss: The loss; its scale may be the norm of each embedding (A-Softmax).
        bias: Learnt bias on all logits; None for losses without one.
    """
    emb, centres, scale = emb_ND.double(), centre_CD.detach().double(), loss.at(0).scale
    cos_NC = functional.normalize(emb, dim=1) @ functional.normalize(centres, dim=1).T
    value_NC, _ = loss.similarity(cos_NC.clamp(min=-1))
    logit_NC = (emb.norm(dim=1, keepdim=True) if scale is None else scale) * value_NC
    return loss.reducer.probabilities(logit_NC if bias is None else logit_NC + bias)


def _all_ranks(part: Embeddings, comm: Comm) -> Embeddings:
    return Embeddings(emb_ND=comm.all_gather_rows(part.emb_ND), thumbnail_NP=comm.all_gather_rows(part.thumbnail_NP))


def _unit_rows(part: Embeddings) -> Floats:
    return functional.normalize(part.emb_ND.double(), dim=1).cpu().numpy()


def _to_numpy(rows: torch.Tensor) -> Ints:
    return rows.cpu().numpy().astype(np.int64)


def _models(seed: int) -> Mapping[str, ClassifierMixin]:
    # Imported late: scikit-learn takes 1.5 s, which only an evaluation should pay for.
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.svm import SVC

    models = (
        SVC(kernel="rbf", C=1.0, gamma="scale"),
        LogisticRegression(C=1.0, solver="lbfgs", max_iter=LOGISTIC_STEPS),
        RandomForestClassifier(n_estimators=TREES, random_state=seed % 2**32, n_jobs=1),
        GaussianNB(),
    )
    return dict(zip(METHODS, models, strict=True))


def _fit_predict(models: Mapping[str, Any], gallery_RD: Floats, label_R: Ints, queries_ND: Floats) -> dict[str, Ints]:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread: the number of threads that share a sum decides its last bits.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Only the logistic regression warns. Its objective is strictly convex: after this many steps it is near its
        # only minimum, and more steps would move borders by less than another draw of the folds does.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            name: model.fit(gallery_RD, label_R).predict(queries_ND).astype(np.int64) for name, model in models.items()
        }
