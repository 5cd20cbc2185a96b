"""Exact k-nearest-neighbour search by blocks, on one rank or many.

The result is the same for every block size and number of ranks. A floating-point matrix product depends in its last
bits on the shapes it is cut into, so that equally near neighbours would change places. Here no sum is ever rounded:
each component is a whole number (:func:`round_to_grid`), and all partial sums of a product are whole numbers below
2**53, which fp64 holds exactly in any order of summation, on any device. Ties go to the lowest gallery position.

A first pass in fp32 keeps only the candidates that can be among the k nearest. Its error bound: let s be the exact score
q . r + b of rows of whole numbers, and t the fp32 result, with unit roundoff u = 2**-24. Each component is rounded to
fp32 once; the products of a segment of S components are added in unknown order, with or without fused operations; then
the sums of D / S segments and the bias. Then |t - s| <= E with E = gamma(S + D / S + 3) (|q| |r| + |b|) and
gamma(n) = n u / (1 - n u), by Cauchy-Schwarz; the term S is dropped where the numbers are so small that fp32 holds a
segment's sum exactly. Nothing underflows, because whole numbers other than 0 are at least 1.
Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.

If k gallery rows have t >= L, the exact score of each is at least L - E. A row with t < L - 2 E has s < L - E: it is
worse than all k of them and cannot tie with them. All others are candidates and are compared exactly.

Shapes: Q queries, R gallery rows, D components, k neighbours, B gallery rows of one block, G columns of peaks,
M = B / G members of a column, H hits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import DataError

MAX_COMPONENTS = 2**18
"""Up to here gamma is below 2**-13, and rounding to whole numbers lengthens no unit row on the grid by 2**-17."""

_SEGMENT = 256
"""Components added up in one product. In long rows shorter sums tighten the bound, and those of 256 grey levels are
exact: 256 x 255 x 255 is below 2**24, which ends fp32's whole numbers."""

_SCORES_AT_A_TIME = 2**21
"""Scores of a block, so that they stay in the processor's cache between the passes over them."""


@dataclass(frozen=True, kw_only=True)
class GalleryRows:
    """Rows that queries are compared with, made when they are needed.

    Attributes:
        rows: Gives rows (n, D), fp64 whole numbers, for a slice or a tensor of positions.
        shape: (R, D).
        reach: Length of the longest row, or more.
        peak: Largest component, without its sign, or more.
        bias_R: fp64, added to the scores; None where there is none.
    """

    rows: Callable[[slice | torch.Tensor], torch.Tensor]
    shape: tuple[int, int]
    reach: float
    peak: float
    bias_R: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Pairs of a query and a reference that need an exact comparison, by ascending query, then position.

    Attributes:
        query_H: Row of the query, int64.
        position_H: Row of the reference, int64.
        crowded_Q: Queries with too many candidates to list: none of theirs is here.
    """

    query_H: torch.Tensor
    position_H: torch.Tensor
    crowded_Q: torch.Tensor


def crowd(k: int) -> int:
    """Return how many hits a query may have; random rows have about 6 k of them on the way."""
    return 8 * k + 256


def find_candidates(queries_QD: torch.Tensor, references: GalleryRows, *, k: int, block: int) -> Candidates:
    """Return pairs that hold, for each query that is not crowded, all that the k best scores can be among.

    Args:
        queries_QD: Whole numbers, fp64.
        references: At least k, with 1 to MAX_COMPONENTS components.
        k: Neighbours per query.
        block: References compared at a time, at most.
    """
    with _true_fp32(queries_QD.device):
        return _find(queries_QD, references, k, block)


def _find(queries_QD: torch.Tensor, references: GalleryRows, k: int, block: int) -> Candidates:
    columns = max(64, 4 * k)
    level = _Level(_margin(queries_QD, references), k, columns)
    found = _Hits(torch.zeros(len(queries_QD), dtype=torch.int64, device=queries_QD.device), crowd(k))
    multiply = _product(queries_QD)
    for start, stop in _spans(references.shape[0], len(queries_QD), block, columns):
        scores_QB = multiply(references.rows(slice(start, stop)))
        if references.bias_R is not None:
            scores_QB += references.bias_R[start:stop].float()
        scores_QMG = _in_columns(scores_QB, columns)
        peak_QG = scores_QMG.amax(dim=1)
        level.add(peak_QG, stop)
        found.add(scores_QMG, peak_QG, level.floor_Q1, start)
        if bool(found.crowded_Q.all()):
            break
    level.settle()
    return found.above(level.floor_Q1, references.shape[0])


class _Level:
    """What a score in fp32 must reach for its reference to be a candidate, by the references seen so far."""

    def __init__(self, margin_Q1: torch.Tensor, k: int, columns: int) -> None:
        self._margin_Q1 = margin_Q1
        # Each entry is the highest score among references that no other entry stands for.
        self._best_Qk = margin_Q1.new_full((len(margin_Q1), k), -torch.inf, dtype=torch.float32)
        self._pending_QG = self._best_Qk.new_full((len(margin_Q1), columns), -torch.inf)
        self._settled = 0
        self.floor_Q1 = self._floor()

    def add(self, peak_QG: torch.Tensor, seen: int) -> None:
        """Take the peaks of a block; ``seen`` references have been compared with it."""
        self._pending_QG = torch.maximum(self._pending_QG, peak_QG)
        # topk costs more than the products of a small block: it runs each time that twice as many are seen.
        if seen >= 2 * self._settled:
            self.settle()
            self._settled = seen

    def settle(self) -> None:
        """Raise the level to what the peaks taken since allow."""
        joined = torch.cat([self._best_Qk, self._pending_QG], dim=1)
        self._best_Qk = joined.topk(self._best_Qk.shape[1], dim=1).values
        self._pending_QG.fill_(-torch.inf)
        self.floor_Q1 = self._floor()

    def _floor(self) -> torch.Tensor:
        least_Q1 = self._best_Qk.amin(dim=1, keepdim=True).double() - self._margin_Q1
        # Finite, so that padding of minus infinity stays below it.
        return least_Q1.float().clamp_(min=torch.finfo(torch.float32).min)


class _Hits:
    """Scores that reached the level of their time."""

    def __init__(self, count_Q: torch.Tensor, room: int) -> None:
        self._blocks: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._count_Q, self._room = count_Q, room

    @property
    def crowded_Q(self) -> torch.Tensor:
        """Queries with more hits than there is room for: no more are listed."""
        return self._count_Q > self._room

    def add(self, scores_QMG: torch.Tensor, peak_QG: torch.Tensor, floor_Q1: torch.Tensor, start: int) -> None:
        """Take what reaches the level in a block whose first reference stands at ``start``."""
        floor_Q1 = floor_Q1.masked_fill(self.crowded_Q[:, None], torch.inf)
        query, column = (peak_QG >= floor_Q1).nonzero(as_tuple=True)
        score_nM = scores_QMG[query, :, column]
        hit, member = (score_nM >= floor_Q1[query]).nonzero(as_tuple=True)
        query_H, position_H = query[hit], start + member * scores_QMG.shape[2] + column[hit]
        self._count_Q = self._count_Q + query_H.bincount(minlength=len(self._count_Q))
        self._blocks.append((query_H, position_H, score_nM[hit, member]))

    def above(self, floor_Q1: torch.Tensor, references: int) -> Candidates:
        """Return the hits that reach the last level."""
        query_H, position_H, score_H = (torch.cat(parts) for parts in zip(*self._blocks, strict=True))
        kept = (score_H >= floor_Q1[query_H, 0]) & ~self.crowded_Q[query_H]
        key_H = (query_H[kept] * references + position_H[kept]).sort().values
        return Candidates(query_H=key_H // references, position_H=key_H % references, crowded_Q=self.crowded_Q)


def _margin(queries_QD: torch.Tensor, references: GalleryRows) -> torch.Tensor:
    """Return 2 E of each query (Q, 1), fp64, and some more for the rounding of a level to fp32."""
    segment = min(references.shape[1], _SEGMENT)
    is_exact = float(queries_QD.abs().amax()) * references.peak * segment <= 2**24
    # Five roundings more than the proof asks for: 10 u of slack, where the level's own rounding takes less than 2 u.
    count = (0 if is_exact else segment) + math.ceil(references.shape[1] / segment) + 8
    roundings = count * 2.0**-24
    size_Q1 = torch.linalg.vector_norm(queries_QD, dim=1, keepdim=True) * references.reach
    if references.bias_R is not None:
        size_Q1 += references.bias_R.abs().amax()
    return 2 * roundings / (1 - roundings) * size_Q1


def _spans(references: int, queries: int, block: int, columns: int) -> Iterator[tuple[int, int]]:
    step = min(block, max(columns, _SCORES_AT_A_TIME // queries))
    # Whole columns need no padding.
    step -= step % columns if step > columns else 0
    for start in range(0, references, step):
        yield start, min(start + step, references)


def _in_columns(scores_QB: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the scores as (Q, M, G): neighbouring references, often alike, stand in different columns."""
    padding = -scores_QB.shape[1] % columns
    if padding:
        scores_QB = functional.pad(scores_QB, (0, padding), value=-torch.inf)
    return scores_QB.view(len(scores_QB), -1, columns)


def _product(queries_QD: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that multiplies the queries with references (B, D), fp64, into scores (Q, B), fp32."""
    factors = [_segment_product(queries_QS.float()) for queries_QS in queries_QD.split(_SEGMENT, dim=1)]

    def multiply(references_BD: torch.Tensor) -> torch.Tensor:
        segments = references_BD.split(_SEGMENT, dim=1)
        scores_QB = factors[0](segments[0].float())
        for factor, segment_BS in zip(factors[1:], segments[1:], strict=True):
            scores_QB += factor(segment_BS.float())
        return scores_QB

    return multiply


def _segment_product(queries_QS: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    if queries_QS.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda references_BS: queries_QS @ references_BS.T
    # oneDNN uses AVX-512 on every processor that has it; MKL, behind mm, does not on AMD's and takes twice as long.
    packed = queries_QS.contiguous().to_mkldnn()
    return lambda references_BS: functional.linear(packed, references_BS.contiguous()).to_dense()


@contextlib.contextmanager
def _true_fp32(device: torch.device) -> Iterator[None]:
    """Keep TF32 and bf16, which the process or autocast may allow for products of fp32, away from the bound."""
    with torch.autocast(device.type, enabled=False):
        if not hasattr(torch.backends.mkldnn, "matmul"):  # before torch 2.9
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)
            return
        settings = torch.backends.mkldnn.matmul if device.type == "cpu" else torch.backends.cuda.matmul
        before = settings.fp32_precision
        settings.fp32_precision = "ieee"
        try:
            yield
        finally:
            settings.fp32_precision = before


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
