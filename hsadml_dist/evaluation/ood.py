"""Detect out-of-distribution images, for which a predicted class is meaningless.

A network maps a photograph or an inverted slice among its training cases as readily as a brain. Two distances are
therefore checked: that of the embeddings, and that of thumbnails, which no training has influenced. An image is out of
distribution if either exceeds its threshold. A threshold is a quantile, over training cases, of the distance to the
nearest training case of another patient, which is the distance of a new patient to the run.

Shapes: N gallery slices (training cases), Q queries, D components, P pixels of a thumbnail, G cells of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hsadml_dist.evaluation.baselines import THUMBNAIL_SIDE, Bytes
from hsadml_dist.evaluation.metrics import Floats, Ints

CELLS = 8
"""Thumbnails are compared by the mean brightness of CELLS x CELLS cells."""
QUANTILE = 0.995
MIN_STD = 0.05
"""Without it, any grey in a cell that is black in all training cases would be infinitely far."""
MAX_QUERIES = 4096
"""Training cases, evenly spaced, from which a threshold is computed."""
QUERY_BATCH = 512
"""Training cases compared at a time; affects the memory use only."""

Distances = Callable[[Ints], Floats]
"""Maps gallery positions (Q,) to their distances (Q, N) to the whole gallery."""


@dataclass(frozen=True, kw_only=True)
class ThumbnailStats:
    """Cell brightnesses of the training cases, standardised by ``mean_G`` and ``std_G``, at least :data:`MIN_STD`."""

    cells_NG: Floats
    mean_G: Floats
    std_G: Floats

    @classmethod
    def from_thumbnails(cls, thumbnail_NP: Bytes) -> ThumbnailStats:
        """Compute the statistics of thumbnails (N, P)."""
        plain = brightness(thumbnail_NP)
        mean, std = plain.mean(axis=0), np.maximum(plain.std(axis=0), MIN_STD)
        return cls(cells_NG=(plain - mean) / std, mean_G=mean, std_G=std)

    def distance(self, thumbnail_QP: Bytes) -> Floats:
        """Return the root-mean-square distance (Q,) of each image to the most similar training case."""
        cells_QG = (brightness(thumbnail_QP) - self.mean_G) / self.std_G
        return np.array([_rms_distances(row[None], self.cells_NG).min() for row in cells_QG])


def brightness(thumbnail_NP: Bytes) -> Floats:
    """Return the mean brightness (N, G) of each cell, from 0 (the image's darkest pixel) to 1 (its brightest)."""
    step = THUMBNAIL_SIDE // CELLS
    cells = thumbnail_NP.reshape(-1, CELLS, step, CELLS, step).mean(axis=(2, 4))
    return cells.reshape(len(thumbnail_NP), CELLS * CELLS) / 255


def embedding_threshold(
    emb_ND: npt.NDArray[np.float32], persons: Sequence[str], *, max_queries: int = MAX_QUERIES, batch: int = QUERY_BATCH
) -> float:
    """Return the distance (1 - cosine) above which an embedding is far from all of ``emb_ND``."""
    unit = torch.nn.functional.normalize(torch.from_numpy(emb_ND).double(), dim=1)
    return _threshold(persons, lambda chosen: (1 - unit[torch.from_numpy(chosen)] @ unit.T).numpy(), max_queries, batch)


def thumbnail_threshold(stats: ThumbnailStats, persons: Sequence[str]) -> float:
    """Return the distance above which a thumbnail is far from all training cases."""
    cells_NG = stats.cells_NG
    return _threshold(persons, lambda chosen: _rms_distances(cells_NG[chosen], cells_NG), MAX_QUERIES, QUERY_BATCH)


def patient_groups(persons: Sequence[str]) -> Ints:
    """Return a group number (N,) for each slice; slices of one group are not compared with each other.

    Slices of one patient form a group. A slice without a patient id is a group of its own; with only one patient, every
    slice is.
    """
    ids = [person or f" {row}" for row, person in enumerate(persons)]
    if len(set(ids)) == 1:
        return np.arange(len(ids), dtype=np.int64)
    return np.unique(np.array(ids), return_inverse=True)[1].astype(np.int64)


def _threshold(persons: Sequence[str], distances: Distances, max_queries: int, batch: int) -> float:
    group = patient_groups(persons)
    if len(group) < 2:
        return float("inf")
    queries = np.linspace(0, len(group) - 1, min(len(group), max_queries)).round().astype(np.int64)
    nearest = [
        np.where(group[chosen][:, None] == group, np.inf, distances(chosen)).min(axis=1)
        for chosen in np.array_split(queries, -(-len(queries) // batch))
    ]
    return float(np.quantile(np.concatenate(nearest), QUANTILE))


def _rms_distances(cells_QG: Floats, cells_NG: Floats) -> Floats:
    squares = (cells_QG**2).sum(axis=1)[:, None] + (cells_NG**2).sum(axis=1) - 2 * cells_QG @ cells_NG.T
    return np.sqrt(np.maximum(squares, 0) / cells_NG.shape[1])
