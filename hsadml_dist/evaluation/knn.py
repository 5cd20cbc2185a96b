"""Exact k-nearest-neighbour search by blocks, on one rank or many.

The result is the same for every block size and number of ranks. A floating-point matrix product depends in its last
bits on the shapes it is cut into, so equally near neighbours could swap places. Here no sum is ever rounded: components
are whole numbers (:func:`round_to_grid`), and all partial sums of a product are whole numbers below 2**53, which fp64
holds exactly in any order of summation, on any device. Ties go to the lowest gallery position.

A first pass in fp32 selects the candidates that can be among the k nearest. Error bound: let s be the exact score
q . r + b of rows of whole numbers, t the fp32 result, and u = 2**-24 the unit roundoff. Each component is rounded to
fp32 once; the products of a segment of S components are added in unknown order, with or without fused operations, then
the sums of D / S segments and the bias. By Cauchy-Schwarz |t - s| <= E with E = gamma(S + D / S + 3) (|q| |r| + |b|)
and gamma(n) = n u / (1 - n u). The term S is dropped where the numbers are so small that fp32 holds the sum of a
segment exactly. Nothing underflows, because whole numbers other than 0 are at least 1. Source: Higham, Accuracy and
Stability of Numerical Algorithms, 2nd edition, section 3.1.

If k gallery rows have t >= L, each of their exact scores is at least L - E. A row with t < L - 2 E has s < L - E, so it
is worse than all k of them and cannot tie with them. All other rows are candidates and are compared exactly.

Shapes: Q queries, R gallery rows, D components, k neighbours, B gallery rows of one block, G columns of maxima,
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

GRID = 2.0**26
"""Grid steps per unit: by Cauchy-Schwarz partial sums of a product of unit rows stay below 2**52 (1 + 2**-20)."""

MAX_COMPONENTS = 2**18
"""Largest D of the candidate search: up to here gamma is below 2**-13, and rounding to the grid makes no unit row
longer than 1 + 2**-17."""

_SEGMENT = 256
"""Components summed in one product. Shorter sums tighten the bound for long rows, and those of 256 grey levels are
exact: 256 x 255 x 255 is below 2**24, the end of fp32's whole numbers."""

_MAX_BLOCK_SCORES = 2**21
"""Scores of a block, so that they stay in the processor's cache between the passes over them."""

_QUERY_BATCH = 1024
_BATCH_COMPONENTS = 2**18


@dataclass(frozen=True, kw_only=True)
class GalleryRows:
    """Gallery rows, created on demand.

    Attributes:
        rows: Returns rows (n, D), fp64 whole numbers, for a slice or a tensor of positions.
        shape: (R, D).
        max_norm: Upper bound on the norm of a row.
        max_abs: Upper bound on the absolute value of a component.
        bias_R: Added to the scores, fp64; None means no bias.
    """

    rows: Callable[[slice | torch.Tensor], torch.Tensor]
    shape: tuple[int, ...]
    max_norm: float
    max_abs: float
    bias_R: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Pairs of a query and a gallery row that need an exact comparison, sorted by query, then position.

    Attributes:
        query_H: Row of the query, int64.
        position_H: Row in the gallery, int64.
        overflow_Q: Queries with too many candidates to list, bool; none of their candidates is included.
    """

    query_H: torch.Tensor
    position_H: torch.Tensor
    overflow_Q: torch.Tensor


def round_to_grid(rows_ND: torch.Tensor) -> torch.Tensor:
    """Scale rows to unit length and round them to multiples of 1/GRID; return whole fp64 numbers (N, D).

    A row of zeros stays zero. The rounding error, at most 1.5e-8 per component, is that of fp32.

    Raises:
        DataError: A component is not finite.
    """
    _check_finite(rows_ND)
    return _grid(rows_ND)


def search(
    queries_QD: torch.Tensor, gallery_RD: torch.Tensor, bias_R: torch.Tensor, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k highest ``query . row + bias`` (Q, k), fp64, and their positions (Q, k), int64.

    Scores are sorted in descending order, equal scores by position. All arguments are fp64 and hold whole numbers (the
    bias: multiples of one half) whose products sum to less than 2**53.

    Raises:
        DataError: The gallery has fewer than k rows.
    """
    _check_count(k, len(gallery_RD))
    max_norm = float(torch.linalg.vector_norm(gallery_RD, dim=1).amax())
    gallery = GalleryRows(
        rows=gallery_RD.__getitem__,
        shape=gallery_RD.shape,
        max_norm=max_norm,
        # The exact maximum matters only to small numbers, such as grey levels.
        max_abs=float(torch.linalg.vector_norm(gallery_RD, torch.inf)) if max_norm < 2.0**24 else max_norm,
        bias_R=bias_R if bool(bias_R.any()) else None,
    )
    return _search(queries_QD, gallery, k, block)


def nearest(
    queries_QD: torch.Tensor, gallery_RD: torch.Tensor, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k nearest gallery rows of each query by cosine.

    Args:
        queries_QD: Rows of any length, fp32 or fp64.
        gallery_RD: Rows of any length, on the same device.
        k: Neighbours per query.
        block: Gallery rows compared at a time; affects the memory use only.

    Returns:
        Cosines (Q, k) in the dtype of the queries, in descending order, and positions (Q, k), int64. Equal cosines are
        sorted by position.

    Raises:
        DataError: The gallery has fewer than k rows, or a component is not finite.
    """
    _check_count(k, len(gallery_RD))
    _check_finite(gallery_RD)
    gallery = GalleryRows(
        rows=lambda where: _grid(gallery_RD[where]),
        shape=gallery_RD.shape,
        max_norm=GRID * (1 + 2.0**-17),
        max_abs=GRID,
        bias_R=None,
    )
    scores, positions = _search(round_to_grid(queries_QD), gallery, k, block)
    return (scores / GRID**2).to(queries_QD.dtype), positions


def nearest_distributed(
    queries_QD: torch.Tensor, gallery_RD: torch.Tensor, comm: Comm, *, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call :func:`nearest` with queries and gallery distributed over ranks. Collective: every rank must call it.

    A rank may hold no rows. Every rank returns the neighbours of the queries of all ranks, in rank order. Positions
    count the gallery rows of all ranks in rank order, so the result does not depend on how the rows are distributed.
    """
    gallery = comm.all_gather_rows(gallery_RD)
    cosines, positions = nearest(queries_QD, gallery, k=k, block=block)
    return comm.all_gather_rows(cosines), comm.all_gather_rows(positions)


def majority_label(label_Qk: torch.Tensor) -> torch.Tensor:
    """Return the most frequent label (Q,) of each query's neighbours; ties go to the nearest neighbour's label."""
    counts_Qk = (label_Qk[:, :, None] == label_Qk[:, None, :]).sum(dim=2)
    # argmax returns the first maximum: the nearest neighbour among those of the most frequent labels.
    first = counts_Qk.argmax(dim=1, keepdim=True)
    return label_Qk.gather(1, first).squeeze(1)


def _search(queries_QD: torch.Tensor, gallery: GalleryRows, k: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    # In a small gallery most rows would be candidates.
    worthwhile = gallery.shape[0] >= 4 * max_candidates(k) and 1 <= gallery.shape[1] <= MAX_COMPONENTS
    search_batch = search_candidates if worthwhile and len(queries_QD) else search_all
    batches = [search_batch(batch, gallery, k, block) for batch in queries_QD.split(_QUERY_BATCH)]
    return torch.cat([scores for scores, _ in batches]), torch.cat([positions for _, positions in batches])


def search_all(queries_QD: torch.Tensor, gallery: GalleryRows, k: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Search like :func:`search`, comparing every row in fp64: for small galleries, or many similar rows."""
    best = queries_QD.new_empty((len(queries_QD), 0))
    positions = torch.empty((len(queries_QD), 0), dtype=torch.int64, device=queries_QD.device)
    for start in range(0, gallery.shape[0], block):
        stop = min(start + block, gallery.shape[0])
        scores_QB = queries_QD @ gallery.rows(slice(start, stop)).T
        if gallery.bias_R is not None:
            scores_QB += gallery.bias_R[start:stop]
        found, column = _top_k(scores_QB, min(k, stop - start))
        # Earlier results come first: their positions are lower, and the merge prefers the first of equal scores.
        merged, merged_positions = torch.cat([best, found], 1), torch.cat([positions, column + start], 1)
        best, order = _top_k(merged, min(k, merged.shape[1]))
        positions = merged_positions.gather(1, order)
    return best, positions


def search_candidates(
    queries_QD: torch.Tensor, gallery: GalleryRows, k: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search like :func:`search`, comparing only those rows in fp64 that fp32 cannot rule out."""
    found = find_candidates(queries_QD, gallery, k=k, block=block)
    scores, positions = _best_candidates(found, _exact_scores(found, queries_QD, gallery), k)
    overflow = found.overflow_Q.nonzero()[:, 0]
    if len(overflow):
        scores[overflow], positions[overflow] = search_all(queries_QD[overflow], gallery, k, block)
    return scores, positions


def max_candidates(k: int) -> int:
    """Return how many hits a query may have; random rows have about 6 k hits in total."""
    return 8 * k + 256


def find_candidates(queries_QD: torch.Tensor, gallery: GalleryRows, *, k: int, block: int) -> Candidates:
    """Find the gallery rows that can be among each query's k nearest, except for queries that overflow.

    Queries are whole numbers, fp64; the gallery has at least k rows of 1 to MAX_COMPONENTS components, of which at most
    ``block`` are compared at a time.
    """
    with _strict_fp32(queries_QD.device):
        columns = max(64, 4 * k)
        threshold = _Threshold(score_margin(queries_QD, gallery), k, columns)
        hits = _Hits(torch.zeros(len(queries_QD), dtype=torch.int64, device=queries_QD.device), max_candidates(k))
        multiply = fp32_product(queries_QD)
        for start, stop in _spans(gallery.shape[0], len(queries_QD), block, columns):
            scores_QB = multiply(gallery.rows(slice(start, stop)))
            if gallery.bias_R is not None:
                scores_QB += gallery.bias_R[start:stop].float()
            scores_QMG = _in_columns(scores_QB, columns)
            max_QG = scores_QMG.amax(dim=1)
            threshold.add(max_QG, stop)
            hits.add(scores_QMG, max_QG, threshold.value_Q1, start)
            if bool(hits.overflow_Q.all()):
                break
        threshold.update()
        return hits.above(threshold.value_Q1, gallery.shape[0])


class _Threshold:
    """The fp32 score that makes a gallery row a candidate, given the rows seen so far."""

    def __init__(self, margin_Q1: torch.Tensor, k: int, columns: int) -> None:
        self._margin_Q1 = margin_Q1
        # Each entry is the highest score of a set of rows; the sets are disjoint.
        self._best_Qk = margin_Q1.new_full((len(margin_Q1), k), -torch.inf, dtype=torch.float32)
        self._pending_QG = self._best_Qk.new_full((len(margin_Q1), columns), -torch.inf)
        self._rows_at_update = 0
        self.value_Q1 = self._value()

    def add(self, max_QG: torch.Tensor, seen: int) -> None:
        """Add the maxima of a block; ``seen`` counts the gallery rows up to its end."""
        self._pending_QG = torch.maximum(self._pending_QG, max_QG)
        # topk costs more than the products of a small block, so it runs only when the number of rows has doubled.
        if seen >= 2 * self._rows_at_update:
            self.update()
            self._rows_at_update = seen

    def update(self) -> None:
        """Raise the threshold by the maxima added since the last update."""
        merged = torch.cat([self._best_Qk, self._pending_QG], dim=1)
        self._best_Qk = merged.topk(self._best_Qk.shape[1], dim=1).values
        self._pending_QG.fill_(-torch.inf)
        self.value_Q1 = self._value()

    def _value(self) -> torch.Tensor:
        value_Q1 = self._best_Qk.amin(dim=1, keepdim=True).double() - self._margin_Q1
        # Finite, so that padding of minus infinity stays below it.
        return value_Q1.float().clamp_(min=torch.finfo(torch.float32).min)


class _Hits:
    """Scores that reached the threshold when their block was compared."""

    def __init__(self, count_Q: torch.Tensor, limit: int) -> None:
        self._blocks: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._count_Q, self._limit = count_Q, limit

    @property
    def overflow_Q(self) -> torch.Tensor:
        """Queries with more hits than the limit; their later hits are not collected."""
        return self._count_Q > self._limit

    def add(self, scores_QMG: torch.Tensor, max_QG: torch.Tensor, threshold_Q1: torch.Tensor, start: int) -> None:
        """Collect the hits of the block that begins at gallery row ``start``."""
        threshold_Q1 = threshold_Q1.masked_fill(self.overflow_Q[:, None], torch.inf)
        query, column = (max_QG >= threshold_Q1).nonzero(as_tuple=True)
        score_nM = scores_QMG[query, :, column]
        hit, member = (score_nM >= threshold_Q1[query]).nonzero(as_tuple=True)
        query_H, position_H = query[hit], start + member * scores_QMG.shape[2] + column[hit]
        self._count_Q = self._count_Q + query_H.bincount(minlength=len(self._count_Q))
        self._blocks.append((query_H, position_H, score_nM[hit, member]))

    def above(self, threshold_Q1: torch.Tensor, gallery_size: int) -> Candidates:
        """Return the hits that reach the final threshold."""
        query_H, position_H, score_H = (torch.cat(parts) for parts in zip(*self._blocks, strict=True))
        kept = (score_H >= threshold_Q1[query_H, 0]) & ~self.overflow_Q[query_H]
        key_H = (query_H[kept] * gallery_size + position_H[kept]).sort().values
        return Candidates(query_H=key_H // gallery_size, position_H=key_H % gallery_size, overflow_Q=self.overflow_Q)


def score_margin(queries_QD: torch.Tensor, gallery: GalleryRows) -> torch.Tensor:
    """Return 2 E of each query (Q, 1), fp64, plus slack for the rounding of a threshold to fp32."""
    segment = min(gallery.shape[1], _SEGMENT)
    exact = float(queries_QD.abs().amax()) * gallery.max_abs * segment <= 2**24
    # Five roundings more than the proof needs: 10 u of slack, while rounding the threshold costs less than 2 u.
    count = (0 if exact else segment) + math.ceil(gallery.shape[1] / segment) + 8
    roundings = count * 2.0**-24
    size_Q1 = torch.linalg.vector_norm(queries_QD, dim=1, keepdim=True) * gallery.max_norm
    if gallery.bias_R is not None:
        size_Q1 += gallery.bias_R.abs().amax()
    return 2 * roundings / (1 - roundings) * size_Q1


def fp32_product(queries_QD: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from gallery rows (B, D), fp64, to their products with the queries (Q, B), fp32."""
    factors = [_segment_product(queries_QS.float()) for queries_QS in queries_QD.split(_SEGMENT, dim=1)]

    def multiply(gallery_BD: torch.Tensor) -> torch.Tensor:
        segments = gallery_BD.split(_SEGMENT, dim=1)
        scores_QB = factors[0](segments[0].float())
        for factor, segment_BS in zip(factors[1:], segments[1:], strict=True):
            scores_QB += factor(segment_BS.float())
        return scores_QB

    return multiply


def _segment_product(queries_QS: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    if queries_QS.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda gallery_BS: queries_QS @ gallery_BS.T
    # oneDNN uses AVX-512 on every processor that has it; MKL, used by mm, does not on AMD's and takes twice as long.
    packed = queries_QS.contiguous().to_mkldnn()
    return lambda gallery_BS: functional.linear(packed, gallery_BS.contiguous()).to_dense()


def _spans(gallery_size: int, queries: int, block: int, columns: int) -> Iterator[tuple[int, int]]:
    step = min(block, max(columns, _MAX_BLOCK_SCORES // queries))
    # Whole columns need no padding.
    step -= step % columns if step > columns else 0
    for start in range(0, gallery_size, step):
        yield start, min(start + step, gallery_size)


def _in_columns(scores_QB: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the scores as (Q, M, G); adjacent gallery rows, often similar, go to different columns."""
    padding = -scores_QB.shape[1] % columns
    if padding:
        scores_QB = functional.pad(scores_QB, (0, padding), value=-torch.inf)
    return scores_QB.view(len(scores_QB), -1, columns)


@contextlib.contextmanager
def _strict_fp32(device: torch.device) -> Iterator[None]:
    """Disable TF32 and bf16 for fp32 products, which the process or autocast may allow: the bound needs fp32."""
    with torch.autocast(device.type, enabled=False), contextlib.ExitStack() as restore:
        try:
            restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        except RuntimeError:  # the program has used fp32_precision, which torch does not let mix with the above
            settings = (torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda).matmul  # type: ignore[attr-defined]
            restore.callback(setattr, settings, "fp32_precision", settings.fp32_precision)
            settings.fp32_precision = "ieee"
        yield


def _exact_scores(found: Candidates, queries_QD: torch.Tensor, gallery: GalleryRows) -> torch.Tensor:
    count = max(1, _BATCH_COMPONENTS // queries_QD.shape[1])
    pairs = zip(found.query_H.split(count), found.position_H.split(count), strict=True)
    score_H = torch.cat([(gallery.rows(position) * queries_QD[query]).sum(dim=1) for query, position in pairs])
    return score_H if gallery.bias_R is None else score_H + gallery.bias_R[found.position_H]


def _best_candidates(found: Candidates, score_H: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best scores (Q, k) of each query and their positions; undefined for queries that overflow."""
    count_Q = found.query_H.bincount(minlength=len(found.overflow_Q))
    first_Q = count_Q.cumsum(dim=0) - count_Q
    column_H = torch.arange(len(score_H), device=score_H.device) - first_Q[found.query_H]
    shape = (len(count_Q), max(k, int(count_Q.max())))
    score = score_H.new_full(shape, -torch.inf).index_put_((found.query_H, column_H), score_H)
    position = found.position_H.new_zeros(shape).index_put_((found.query_H, column_H), found.position_H)
    # Candidates are sorted by position; a stable sort keeps that order among equal scores.
    score, order = score.sort(dim=1, descending=True, stable=True)
    return score[:, :k].contiguous(), position.gather(1, order[:, :k])


def _top_k(scores_QB: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k highest scores and their columns, the leftmost of equal ones (``topk`` leaves that open)."""
    if k == 1:
        # max() returns the first of equal maxima on every device.
        score, column = scores_QB.max(dim=1, keepdim=True)
        return score, column
    kth = scores_QB.topk(k, dim=1).values[:, -1:]
    above, equal = scores_QB > kth, scores_QB == kth
    room = k - above.sum(dim=1, keepdim=True)
    column = (above | (equal & (equal.cumsum(dim=1) <= room))).nonzero()[:, 1].view(len(scores_QB), k)
    score, order = scores_QB.gather(1, column).sort(dim=1, descending=True, stable=True)
    return score, column.gather(1, order)


def _check_count(k: int, gallery_size: int) -> None:
    if not 1 <= k <= gallery_size:
        raise DataError(f"k: {k} is out of range; allowed: 1 to {gallery_size}, the size of the gallery")


def _check_finite(rows_ND: torch.Tensor) -> None:
    # A sum needs no extra memory and keeps NaN and Inf. It may also overflow, which the count below rules out.
    if not bool(rows_ND.sum().isfinite()):
        bad = int((~rows_ND.isfinite()).any(dim=1).sum())
        if bad:
            raise DataError(f"{bad} of {len(rows_ND)} embeddings contain NaN or Inf: the model has diverged")


def _grid(rows_ND: torch.Tensor) -> torch.Tensor:
    grid_ND = torch.empty_like(rows_ND, dtype=torch.float64, memory_format=torch.contiguous_format, requires_grad=False)
    if not grid_ND.numel():
        return grid_ND
    # A few rows at a time stay in the processor's cache from the first operation to the last.
    count = max(1, _BATCH_COMPONENTS // rows_ND.shape[1])
    for rows, grid in zip(rows_ND.detach().split(count), grid_ND.split(count), strict=True):
        grid.copy_(rows)
        # Divided by the largest component first, so that no square overflows or underflows.
        grid.div_(_or_one(grid.abs().amax(dim=1, keepdim=True)))
        grid.div_(_or_one(_sum_rows_(grid * grid).sqrt())).mul_(GRID).round_()
    return grid_ND


def _sum_rows_(scratch_ND: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row (N, 1), in an order that depends on D alone; overwrites the rows."""
    width = scratch_ND.shape[1]
    while width > 1:
        half, odd = divmod(width, 2)
        scratch_ND[:, :half] += scratch_ND[:, half : 2 * half]
        if odd:
            scratch_ND[:, half] = scratch_ND[:, width - 1]
        width = half + odd
    return scratch_ND[:, :1]


def _or_one(column_N1: torch.Tensor) -> torch.Tensor:
    return torch.where(column_N1 > 0, column_N1, torch.ones_like(column_N1))
