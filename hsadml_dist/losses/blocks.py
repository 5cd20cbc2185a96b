"""Iterate over class centres in blocks of rows, optionally over a random sample of the classes.

Class sampling follows An et al., PartialFC, CVPR 2022, with two differences: a hash of seed, step and class id decides
whether a class is drawn, and a target class that was not drawn counts only for its own samples. The result therefore
depends neither on the number of ranks nor on how a batch is split.

Legend of shapes: K rows of a block, R sampled rows, D embedding components, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hsadml_dist.hashing import hash_key, splitmix64

MIN_ROW_NORM = 1e-12
"""Rows shorter than this have no direction: their cosines are 0, and so are their gradients."""


@dataclass(frozen=True, kw_only=True)
class CentreBlock:
    """Some rows of the centres.

    Attributes:
        place: Which rows of the local weight: a slice, or positions (K,).
        class_K: Their class ids; ascending.
        weight_KD: The rows as they are.
        drawn_K: Where classes are sampled: whether a row counts for every sample, or only as some samples' target.
    """

    place: slice | torch.Tensor
    class_K: torch.Tensor
    weight_KD: torch.Tensor
    drawn_K: torch.Tensor | None = None

    def targets(self, label_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (samples, columns), both (n,): the samples whose target is in this block, and where it stands."""
        column_N = torch.searchsorted(self.class_K, label_N).clamp_(max=len(self.class_K) - 1)
        sample = (self.class_K[column_N] == label_N).nonzero().squeeze(1)
        return sample, column_N[sample]


def iter_blocks(weight_CD: torch.Tensor, first: int, size: int, rows: SampledRows | None) -> Iterator[CentreBlock]:
    """Yield all rows of a weight, or the chosen ones, ``size`` at a time.

    Args:
        weight_CD: The local rows.
        first: Class id of the first of them.
        size: Rows of a block.
        rows: The rows that take part; None: all.
    """
    count = len(weight_CD) if rows is None else len(rows.position_R)
    for start in range(0, count, size):
        if rows is None:
            place: slice | torch.Tensor = slice(start, min(start + size, count))
            class_K = torch.arange(start, min(start + size, count), device=weight_CD.device) + first
            yield CentreBlock(place=place, class_K=class_K, weight_KD=weight_CD[place])
        else:
            place = rows.position_R[start : start + size]
            drawn_K = rows.drawn_R[start : start + size]
            yield CentreBlock(place=place, class_K=place + first, weight_KD=weight_CD[place], drawn_K=drawn_K)


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """The rows that take part in a step where classes are sampled.

    Attributes:
        position_R: Ascending positions in the local weight.
        drawn_R: Whether a row was drawn; one that was not is there as some samples' target only.
    """

    position_R: torch.Tensor
    drawn_R: torch.Tensor


class ScratchMatrix:
    """Memory for matrices (N, K), asked for once: pages fresh from the system for each block cost more than its sums.

    Args:
        like_ND: Gives the rows, dtype and device.
        columns: The number of columns that it holds.
    """

    def __init__(self, like_ND: torch.Tensor, columns: int) -> None:
        self._rows = len(like_ND)
        self._flat = like_ND.new_empty(self._rows * columns)

    def matrix(self, columns: int, start: int = 0) -> torch.Tensor:
        """Return the memory from column ``start`` on as a contiguous matrix (N, columns), whatever stands in it."""
        return self._flat[self._rows * start : self._rows * (start + columns)].view(self._rows, columns)


def normalize_rows(rows_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (unit rows (N, D), reciprocals of their lengths (N,)); zeros for rows without a direction."""
    norm_N = torch.linalg.vector_norm(rows_ND, dim=1)
    inverse_N = torch.where(norm_N > MIN_ROW_NORM, 1 / norm_N, 0.0)
    return rows_ND * inverse_N[:, None], inverse_N


def normalize_backward_(grad_ND: torch.Tensor, unit_ND: torch.Tensor, inverse_N: torch.Tensor) -> torch.Tensor:
    """Turn derivatives by unit rows into those by the rows themselves, in place; returns them."""
    along_N = torch.linalg.vecdot(grad_ND, unit_ND)
    return grad_ND.addcmul_(unit_ND, along_N[:, None], value=-1).mul_(inverse_N[:, None])


def sample_rows(rows: range, label_N: torch.Tensor, *, rate: float, seed: int, step: int) -> SampledRows:
    """Return which of the rows, named by class id, take part: those drawn and those that are targets.

    Args:
        rows: Class ids of the local rows.
        label_N: Targets of the compared samples.
        rate: Share of the classes that is drawn, in (0, 1].
        seed: The run's seed.
        step: The run's global step.
    """
    hashes = splitmix64(np.arange(rows.start, rows.stop, dtype=np.uint64), hash_key(f"classes {seed} {step}"))
    # Of the upper 63 bits; not "below rate * 2^63": at a rate of 1, no number of 64 signed bits holds that.
    drawn_C = torch.from_numpy((hashes >> np.uint64(1)).astype(np.int64) <= int(rate * 2**63) - 1).to(label_N.device)
    taken_C = drawn_C.clone()
    here = (label_N >= rows.start) & (label_N < rows.stop)
    taken_C[label_N[here] - rows.start] = True
    position_R = taken_C.nonzero().squeeze(1)
    return SampledRows(position_R=position_R, drawn_R=drawn_C[position_R])
