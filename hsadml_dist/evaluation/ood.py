"""How far an image may lie from all training cases before its class means nothing.

Two distances, since a network maps what it has never seen (a photograph, an inverted slice) among its training cases
as readily as a brain: that of embeddings, and that of the pictures' plain looks, which no training has touched. What
is far by either is told. Each threshold is a quantile over training cases, of the distance to the nearest case of
another person: what a new person is to the run.

Shapes: N references, Q queries, D components, P pixels of a thumbnail, G cells of a look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hsadml_dist.evaluation.baselines import THUMBNAIL_SIDE
from hsadml_dist.evaluation.metrics import Floats, Ints

CELLS = 8
"""A look is the mean brightness in CELLS x CELLS cells."""
QUANTILE = 0.995
MIN_STD = 0.05
"""Cells that are black in all training cases would otherwise count any grey in them as endlessly far."""
MAX_QUERIES = 4096
"""References, evenly spaced, that a threshold is taken from."""
_QUERIES_AT_A_TIME = 512

Bytes = npt.NDArray[np.uint8]
Distances = Callable[[Ints], Floats]
"""Maps positions (Q,) of references to their distances (Q, N) to all references."""


@dataclass(frozen=True, kw_only=True)
class ThumbnailStats:
    """The looks of the training cases.

    Attributes:
        look_NG: One row a case, each cell standardised.
        mean_G: What was taken off each cell.
        spread_G: What each cell was divided by.
    """

    look_NG: Floats
    mean_G: Floats
    spread_G: Floats

    def distance(self, thumbnail_QP: Bytes) -> Floats:
        """Return each image's root-mean-square distance (Q,) to the look that is most like it."""
        look_QG = (brightness(thumbnail_QP) - self.mean_G) / self.spread_G
        return np.array([_look_distances(row[None], self.look_NG).min() for row in look_QG])


def brightness(thumbnail_NP: Bytes) -> Floats:
    """Return the mean brightness (N, G) of each cell, from 0 (the image's darkest pixel) to 1 (its brightest)."""
    step = THUMBNAIL_SIDE // CELLS
    cells = thumbnail_NP.reshape(-1, CELLS, step, CELLS, step).mean(axis=(2, 4))
    return cells.reshape(len(thumbnail_NP), CELLS * CELLS) / 255


def looks(thumbnail_NP: Bytes) -> ThumbnailStats:
    """Return the looks of training cases from their thumbnails (N, P)."""
    plain = brightness(thumbnail_NP)
    mean, spread = plain.mean(axis=0), np.maximum(plain.std(axis=0), MIN_STD)
    return ThumbnailStats(look_NG=(plain - mean) / spread, mean_G=mean, spread_G=spread)


def embedding_threshold(emb_ND: npt.NDArray[np.float32], persons: Sequence[str]) -> float:
    """Return the distance (1 - cosine) beyond which an embedding is far from all of ``emb_ND``."""
    unit = torch.nn.functional.normalize(torch.from_numpy(emb_ND).double(), dim=1)
    return _threshold(persons, lambda chosen: (1 - unit[torch.from_numpy(chosen)] @ unit.T).numpy())


def look_threshold(known: ThumbnailStats, persons: Sequence[str]) -> float:
    """Return the distance beyond which a look is far from all known ones."""
    return _threshold(persons, lambda chosen: _look_distances(known.look_NG[chosen], known.look_NG))


def groups(persons: Sequence[str]) -> Ints:
    """Return a number (N,) for each slice, the same where slices must not vouch for one another.

    Slices of one person share it. A slice without a person has its own; so has each where there is but one person.
    """
    names = [person or f" {place}" for place, person in enumerate(persons)]
    if len(set(names)) == 1:
        return np.arange(len(names), dtype=np.int64)
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _threshold(persons: Sequence[str], distances: Distances) -> float:
    group = groups(persons)
    if len(group) < 2:
        return float("inf")
    every = np.linspace(0, len(group) - 1, min(len(group), MAX_QUERIES)).round().astype(np.int64)
    least = [
        np.where(group[chosen][:, None] == group, np.inf, distances(chosen)).min(axis=1)
        for chosen in np.array_split(every, -(-len(every) // _QUERIES_AT_A_TIME))
    ]
    return float(np.quantile(np.concatenate(least), QUANTILE))


def _look_distances(look_QG: Floats, look_NG: Floats) -> Floats:
    squares = (look_QG**2).sum(axis=1)[:, None] + (look_NG**2).sum(axis=1) - 2 * look_QG @ look_NG.T
    return np.sqrt(np.maximum(squares, 0) / look_NG.shape[1])
