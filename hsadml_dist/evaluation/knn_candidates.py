"""The few references that can be among a query's k nearest, found by products in fp32 whose error has a proven bound.

Shapes: Q queries, R references, D components, k neighbours, B references of one block, G columns of peaks,
M = B / G members of a column, H hits.

The bound. Let s be the exact score q . r + b of rows of whole numbers, and t what fp32 makes of it, with unit roundoff
u = 2**-24. Each component is rounded to fp32 once; the products of a segment of S components are added in an order
nobody knows, with or without fused operations; then the sums of D / S segments and the bias. Then |t - s| <= E with
E = gamma(S + D / S + 3) (|q| |r| + |b|) and gamma(n) = n u / (1 - n u), by Cauchy-Schwarz; the term S is left out where
the numbers are so small that fp32 holds a segment's sum exactly. Nothing underflows, because whole numbers other than 0
are at least 1.
SOURCE: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.

If k references have t >= L, the exact score of each is at least L - E. One with t < L - 2 E has s < L - E: it is worse
than all k of them, and cannot tie with them either. All others are candidates, for an exact comparison to decide.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

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
