"""Exact nearest neighbours in blocks, on one rank or many, with the same answer for every block size and rank count.

Shapes: Q queries, R references, D components, k neighbours, B references of one block.

A floating-point matrix product depends in its last bits on the shapes it is cut into, and neighbours that are equally
near then change places. Here no sum is ever rounded: each component is a whole number (:func:`round_to_grid`), so that all
partial sums of a product are whole numbers below 2**53, which fp64 holds exactly in any order of summation, on any
device. Equal scores are therefore equal, and the lowest reference position goes first.
"""

from __future__ import annotations

import torch

from hsadml_dist.comm import Comm
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.knn_candidates import MAX_COMPONENTS, Candidates, GalleryRows, crowd, find_candidates

GRID = 2.0**26
"""Steps per unit: by Cauchy-Schwarz the partial sums of a product of two unit rows stay below 2**52 (1 + 2**-20)."""

_QUERIES_AT_A_TIME = 1024

_COMPONENTS_AT_A_TIME = 2**18


def round_to_grid(rows_ND: torch.Tensor) -> torch.Tensor:
    """Return rows scaled to unit length and rounded to whole multiples of 1/GRID, as whole fp64 numbers (N, D).

    A row of zeros stays one. The rounding (1.5e-8 at most per component) is that of fp32.

    Raises:
        DataError: A component is not finite.
    """
    _check_finite(rows_ND)
    return _grid(rows_ND)


def search(
    queries_QD: torch.Tensor, references_RD: torch.Tensor, bias_R: torch.Tensor, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k highest ``query . reference + bias`` (Q, k), fp64, and their positions (Q, k), int64.

    Best first; equal scores by ascending position. All arguments are fp64 and hold whole numbers (the bias: halves)
    whose products sum to less than 2**53.

    Raises:
        DataError: Fewer than k references.
    """
    _check_count(k, len(references_RD))
    reach = float(torch.linalg.vector_norm(references_RD, dim=1).amax())
    references = GalleryRows(
        rows=references_RD.__getitem__,
        shape=_shape(references_RD),
        reach=reach,
        # The exact peak matters only to small numbers, such as grey levels.
        peak=float(torch.linalg.vector_norm(references_RD, torch.inf)) if reach < 2.0**24 else reach,
        bias_R=bias_R if bool(bias_R.any()) else None,
    )
    return _search(queries_QD, references, k, block)


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
    _check_count(k, len(references_RD))
    _check_finite(references_RD)
    references = GalleryRows(
        rows=lambda where: _grid(references_RD[where]),
        shape=_shape(references_RD),
        reach=GRID * (1 + 2.0**-17),
        peak=GRID,
        bias_R=None,
    )
    scores, positions = _search(round_to_grid(queries_QD), references, k, block)
    return (scores / GRID**2).to(queries_QD.dtype), positions


def nearest_distributed(
    queries_QD: torch.Tensor, references_RD: torch.Tensor, comm: Comm, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`nearest`, where each rank holds some of the queries and some of the references, or none.

    All ranks take part; every rank returns the answers to the queries of all ranks, in rank order. Positions count
    the references of all ranks in rank order, so that the answer does not depend on how the rows are spread.
    """
    references = comm.all_gather_rows(references_RD)
    cosines, positions = nearest(queries_QD, references, k=k, block=block)
    return comm.all_gather_rows(cosines), comm.all_gather_rows(positions)


def majority_label(label_Qk: torch.Tensor) -> torch.Tensor:
    """Return the majority label (Q,) of each query's neighbours, nearest first; a tie goes to the nearest among it."""
    counts_Qk = (label_Qk[:, :, None] == label_Qk[:, None, :]).sum(dim=2)
    # The first of the largest counts belongs to the nearest neighbour whose class is among the most frequent ones.
    first = counts_Qk.argmax(dim=1, keepdim=True)
    return label_Qk.gather(1, first).squeeze(1)


def _search(queries_QD: torch.Tensor, references: GalleryRows, k: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Of few references, most would be candidates.
    is_worth_it = references.shape[0] >= 4 * crowd(k) and 1 <= references.shape[1] <= MAX_COMPONENTS
    search_part = search_candidates if is_worth_it and len(queries_QD) else search_all
    parts = [search_part(part, references, k, block) for part in queries_QD.split(_QUERIES_AT_A_TIME)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([positions for _, positions in parts])


def search_all(
    queries_QD: torch.Tensor, references: GalleryRows, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`search`, with every reference compared in fp64: for few references, or many that are alike."""
    best = queries_QD.new_empty((len(queries_QD), 0))
    places = torch.empty((len(queries_QD), 0), dtype=torch.int64, device=queries_QD.device)
    for start in range(0, references.shape[0], block):
        stop = min(start + block, references.shape[0])
        scores_QB = queries_QD @ references.rows(slice(start, stop)).T
        if references.bias_R is not None:
            scores_QB += references.bias_R[start:stop]
        found, at = _first_k(scores_QB, min(k, stop - start))
        # What is kept comes first: its positions are lower, and the merge prefers the earlier of equals.
        joined, joined_places = torch.cat([best, found], 1), torch.cat([places, at + start], 1)
        best, order = _first_k(joined, min(k, joined.shape[1]))
        places = joined_places.gather(1, order)
    return best, places


def search_candidates(
    queries_QD: torch.Tensor, references: GalleryRows, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`search`, with only those references compared in fp64 that fp32 cannot rule out."""
    found = find_candidates(queries_QD, references, k=k, block=block)
    scores, positions = _best_of(found, _exact_scores(found, queries_QD, references), k)
    crowded = found.crowded_Q.nonzero()[:, 0]
    if len(crowded):
        scores[crowded], positions[crowded] = search_all(queries_QD[crowded], references, k, block)
    return scores, positions


def _exact_scores(found: Candidates, queries_QD: torch.Tensor, references: GalleryRows) -> torch.Tensor:
    count = max(1, _COMPONENTS_AT_A_TIME // queries_QD.shape[1])
    pairs = zip(found.query_H.split(count), found.position_H.split(count), strict=True)
    score_H = torch.cat([(references.rows(position) * queries_QD[query]).sum(dim=1) for query, position in pairs])
    return score_H if references.bias_R is None else score_H + references.bias_R[found.position_H]


def _best_of(found: Candidates, score_H: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best candidates (Q, k) of each query and their positions; for a crowded query, anything."""
    count_Q = found.query_H.bincount(minlength=len(found.crowded_Q))
    first_Q = count_Q.cumsum(dim=0) - count_Q
    place_H = torch.arange(len(score_H), device=score_H.device) - first_Q[found.query_H]
    shape = (len(count_Q), max(k, int(count_Q.max())))
    score = score_H.new_full(shape, -torch.inf).index_put_((found.query_H, place_H), score_H)
    position = found.position_H.new_zeros(shape).index_put_((found.query_H, place_H), found.position_H)
    # Candidates stand by ascending position, which a stable sort keeps among equals.
    score, order = score.sort(dim=1, descending=True, stable=True)
    return score[:, :k].contiguous(), position.gather(1, order[:, :k])


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


def _check_count(k: int, references: int) -> None:
    if not 1 <= k <= references:
        raise DataError(f"k is {k}: must be between 1 and the number of references, {references}")


def _check_finite(rows_ND: torch.Tensor) -> None:
    # A sum needs no memory, and NaN and infinity stay in it. It may overflow, which the count then tells apart.
    if not bool(rows_ND.sum().isfinite()):
        bad = int((~rows_ND.isfinite()).any(dim=1).sum())
        if bad:
            raise DataError(f"{bad} of {len(rows_ND)} embeddings hold NaN or infinity: the model has diverged")


def _shape(rows_ND: torch.Tensor) -> tuple[int, int]:
    return rows_ND.shape[0], rows_ND.shape[1]


def _grid(rows_ND: torch.Tensor) -> torch.Tensor:
    grid_ND = torch.empty_like(rows_ND, dtype=torch.float64, memory_format=torch.contiguous_format, requires_grad=False)
    if not grid_ND.numel():
        return grid_ND
    # A few rows at a time: they stay in the processor's cache from the first operation to the last.
    count = max(1, _COMPONENTS_AT_A_TIME // rows_ND.shape[1])
    for rows, grid in zip(rows_ND.detach().split(count), grid_ND.split(count), strict=True):
        _write_grid(rows, grid)
    return grid_ND


def _write_grid(rows_ND: torch.Tensor, grid_ND: torch.Tensor) -> None:
    grid_ND.copy_(rows_ND)
    peak_N1 = grid_ND.abs().amax(dim=1, keepdim=True)
    # Divided by the largest component first, so that no square overflows or vanishes.
    grid_ND.div_(_positive(peak_N1))
    grid_ND.div_(_positive(_sum_rows(grid_ND * grid_ND).sqrt())).mul_(GRID).round_()


def _sum_rows(scratch_ND: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row (N, 1), added in an order that depends on D alone; the rows are lost."""
    width = scratch_ND.shape[1]
    while width > 1:
        half, odd = divmod(width, 2)
        scratch_ND[:, :half] += scratch_ND[:, half : 2 * half]
        if odd:
            scratch_ND[:, half] = scratch_ND[:, width - 1]
        width = half + odd
    return scratch_ND[:, :1]


def _positive(column_N1: torch.Tensor) -> torch.Tensor:
    return torch.where(column_N1 > 0, column_N1, torch.ones_like(column_N1))
