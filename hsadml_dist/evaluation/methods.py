"""All methods on one set of test slices: neighbours on the sphere, centres, the usual classifiers, and the controls.

Shapes: N test slices, R references, C classes, D components, F features, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from hsadml_dist.comm import Comm
from hsadml_dist.evaluation.classifiers import classify
from hsadml_dist.evaluation.control import nearest_pixels_distributed
from hsadml_dist.evaluation.embed import Embeddings
from hsadml_dist.evaluation.knn import majority_label, nearest, nearest_distributed
from hsadml_dist.evaluation.low_level import features, nearest_low_level
from hsadml_dist.evaluation.predictions import HEAD, KNN, LOW_LEVEL, RAW_PIXELS, VOTES
from hsadml_dist.evaluation.scores import Ints


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
