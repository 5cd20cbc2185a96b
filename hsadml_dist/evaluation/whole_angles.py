"""Angles as whole numbers of millionths of a degree, from exact products.

Sums of such angles are exact in any order, so that no figure depends on threads, blocks or the machine's matrix
product (see :mod:`hsadml_dist.evaluation.knn`).

Shapes: M and R rows of any kind, D components.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from hsadml_dist.evaluation.knn import round_to_grid
from hsadml_dist.evaluation.scores import Floats, Ints

DEGREE = 10**6
"""Millionths in a degree: the embeddings' own precision."""

BLOCK_ELEMENTS = 1 << 21


def gridded(rows_MD: npt.NDArray[np.floating]) -> Floats:
    """Return unit rows on the grid on which products are exact.

    Raises:
        DataError: A component that is not finite.
    """
    return round_to_grid(torch.tensor(rows_MD)).numpy()


def between(gridded_MD: Floats, gridded_RD: Floats) -> Ints:
    """Return the angles (M, R) between rows on the grid, in millionths of a degree.

    From the lengths of difference and sum, because the arc cosine of a number near 1 keeps only half the digits.
    """
    dot_MR = gridded_MD @ gridded_RD.T
    square_M1, square_R = (gridded_MD * gridded_MD).sum(axis=1)[:, None], (gridded_RD * gridded_RD).sum(axis=1)
    apart_MR = (square_M1 - dot_MR) + (square_R - dot_MR)
    along_MR = (square_M1 + dot_MR) + (square_R + dot_MR)
    # Two rows of zeros: as far apart as along, which is 90 degrees.
    nowhere_MR = apart_MR + along_MR == 0
    apart_MR[nowhere_MR] = along_MR[nowhere_MR] = 1
    return np.rint(np.degrees(2 * np.arctan2(np.sqrt(apart_MR), np.sqrt(along_MR))) * DEGREE).astype(np.int64)


def blocks(rows: int, width: int) -> list[tuple[int, int]]:
    """Return the ends of runs of rows that are few enough for the memory at ``width`` numbers a row."""
    step = max(1, BLOCK_ELEMENTS // max(width, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
