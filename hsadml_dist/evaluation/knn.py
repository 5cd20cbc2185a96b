"""Exact nearest neighbours in blocks, on one rank or many, with the same answer for every block size and rank count.

Shapes: Q queries, R references, D components, k neighbours, B references of one block.

A floating-point matrix product depends in its last bits on the shapes it is cut into, and neighbours that are equally
near then change places. Here no sum is ever rounded: each component is a whole number (:func:`on_grid`), so that all
partial sums of a product are whole numbers below 2**53, which fp64 holds exactly in any order of summation, on any
device. Equal scores are therefore equal, and the lowest reference position goes first.
"""

from __future__ import annotations

import torch

from hsadml_dist.comm import Comm
from hsadml_dist.errors import DataError

GRID = 2.0**26
"""Steps per unit: by Cauchy-Schwarz the partial sums of a product of two unit rows stay below 2**52 (1 + 2**-20)."""

_QUERIES_AT_A_TIME = 1024


def on_grid(rows_ND: torch.Tensor) -> torch.Tensor:
    """Return rows scaled to unit length and rounded to whole multiples of 1/GRID, as whole fp64 numbers (N, D).

    A row of zeros stays one. The rounding (1.5e-8 at most per component) is that of fp32.

    Raises:
        DataError: A component is not finite.
    """
    rows = rows_ND.to(torch.float64)
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows)).any(dim=1).sum())
        raise DataError(f"{bad} of {len(rows)} embeddings hold NaN or infinity: the model has diverged")
    # Divided by the largest component first, so that no square overflows or vanishes.
    rows = rows / _positive(rows.abs().amax(dim=1, keepdim=True)) if rows.shape[1] else rows
    return torch.round(rows / _positive(_row_sums(rows * rows).sqrt()) * GRID)


def search(
    queries_QD: torch.Tensor, references_RD: torch.Tensor, bias_R: torch.Tensor, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k highest ``query . reference + bias`` (Q, k), fp64, and their positions (Q, k), int64.

    Best first; equal scores by ascending position. All arguments are fp64 and hold whole numbers (the bias: halves)
    whose products sum to less than 2**53.

    Raises:
        DataError: Fewer than k references.
    """
    if not 1 <= k <= len(references_RD):
        raise DataError(f"k is {k}: must be between 1 and the number of references, {len(references_RD)}")
    parts = [_search_part(part, references_RD, bias_R, k, block) for part in queries_QD.split(_QUERIES_AT_A_TIME)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([positions for _, positions in parts])


def nearest(
    queries_QD: torch.Tensor, references_RD: torch.Tensor, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines (Q, k) and the positions (Q, k), int64, of each query's k nearest references by cosine.

    Args:
        queries_QD: Rows of any length; fp32 or fp64.
        references_RD: Rows of any length, on the same device.
        k: Neighbours per query.
        block: References compared at a time; bounds the memory and nothing else.

    Returns:
        Cosines of the queries' dtype, best first; equal cosines stand by ascending position.

    Raises:
        DataError: Fewer than k references, or a component that is not finite.
    """
    references = on_grid(references_RD)
    scores, positions = search(on_grid(queries_QD), references, references.new_zeros(len(references)), k=k, block=block)
    return (scores / GRID**2).to(queries_QD.dtype), positions


def nearest_distributed(
    queries_QD: torch.Tensor, references_RD: torch.Tensor, comm: Comm, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`nearest`, where each rank holds some of the queries and some of the references, or none.

    All ranks take part; every rank returns the answers to the queries of all ranks, in rank order. Positions count
    the references of all ranks in rank order, so that the answer does not depend on how the rows are spread.
    """
    references = comm.gather_rows(references_RD)
    cosines, positions = nearest(queries_QD, references, k=k, block=block)
    return comm.gather_rows(cosines), comm.gather_rows(positions)


def vote(label_Qk: torch.Tensor) -> torch.Tensor:
    """Return the majority label (Q,) of each query's neighbours, nearest first; a tie goes to the nearest among it."""
    counts_Qk = (label_Qk[:, :, None] == label_Qk[:, None, :]).sum(dim=2)
    # The first of the largest counts belongs to the nearest neighbour whose class is among the most frequent ones.
    first = counts_Qk.argmax(dim=1, keepdim=True)
    return label_Qk.gather(1, first).squeeze(1)


def _search_part(
    queries_QD: torch.Tensor, references_RD: torch.Tensor, bias_R: torch.Tensor, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    best = queries_QD.new_empty((len(queries_QD), 0))
    places = torch.empty((len(queries_QD), 0), dtype=torch.int64, device=queries_QD.device)
    for start in range(0, len(references_RD), block):
        stop = min(start + block, len(references_RD))
        scores_QB = queries_QD @ references_RD[start:stop].T + bias_R[start:stop]
        found, at = _first_k(scores_QB, min(k, stop - start))
        # What is kept comes first: its positions are lower, and the merge prefers the earlier of equals.
        joined, joined_places = torch.cat([best, found], 1), torch.cat([places, at + start], 1)
        best, order = _first_k(joined, min(k, joined.shape[1]))
        places = joined_places.gather(1, order)
    return best, places


def _first_k(scores_QB: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k highest scores and their columns; of equals the leftmost (``topk`` alone leaves that open)."""
    if k == 1:
        # max() names the first of equal maxima, on every device.
        score, column = scores_QB.max(dim=1, keepdim=True)
        return score, column
    least = scores_QB.topk(k, dim=1).values[:, -1:]
    above, level = scores_QB > least, scores_QB == least
    room = k - above.sum(dim=1, keepdim=True)
    column = (above | (level & (level.cumsum(dim=1) <= room))).nonzero()[:, 1].view(len(scores_QB), k)
    score, order = scores_QB.gather(1, column).sort(dim=1, descending=True, stable=True)
    return score, column.gather(1, order)


def _row_sums(rows_ND: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row (N, 1), added in an order that depends on D alone."""
    while rows_ND.shape[1] > 1:
        half = rows_ND.shape[1] // 2
        folded = rows_ND[:, :half] + rows_ND[:, half : 2 * half]
        rows_ND = torch.cat([folded, rows_ND[:, 2 * half :]], dim=1)
    return rows_ND


def _positive(column_N1: torch.Tensor) -> torch.Tensor:
    return torch.where(column_N1 > 0, column_N1, torch.ones_like(column_N1))
