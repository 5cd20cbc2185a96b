"""Class centres: initialisation, layout, blocks of rows, class sampling, and the hyperspherical energy regulariser.

Legend of shapes: C classes, K rows of a block or of this rank, J rows of a block of all ranks, R sampled rows,
D embedding components, N samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hsadml_dist.distributed.comm import Comm, SoloComm
from hsadml_dist.hashing import hash_key, splitmix64
from hsadml_dist.losses.curves import min_sine, sine_of

Layout = Literal["replicated", "sharded"]

MIN_ROW_NORM = 1e-12
"""Shorter rows have no direction: their cosines and gradients are 0."""

ENERGY_BLOCK = 1024
"""Number of rows compared at a time by :func:`hyperspherical_energy`."""


class Centres(nn.Module):
    """Centres of a contiguous range of classes: all classes if replicated, the classes of one rank if sharded.

    Attributes:
        classes: C, the number of all classes.
        rows: Class ids of the local rows; may be empty.
        weight: Parameter (K, D); the losses depend only on the directions of its rows.
    """

    def __init__(self, classes: int, dim: int, seed: int, rows: range | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.rows = range(classes) if rows is None else rows
        self.weight = nn.Parameter(initial_rows(self.rows, dim, seed))


def resolve_layout(
    layout: Literal["auto", "replicated", "sharded"], *, classes: int, global_batch: int, world_size: int
) -> Layout:
    """Return ``layout``, with ``auto`` resolved to the layout that sends less.

    Replicated centres all-reduce a gradient of C * D numbers per step; sharded ones gather and scatter 2 * N * D.
    """
    if layout != "auto":
        return layout
    return "sharded" if world_size > 1 and classes > 2 * global_batch else "replicated"


def initial_rows(classes: range, dim: int, seed: int) -> torch.Tensor:
    """Return unit rows (len(classes), D), fp32; each depends only on seed and class id, hence not on the layout."""
    rows = torch.empty(len(classes), dim)
    digest = hashlib.blake2b(f"centres {seed}".encode(), digest_size=4).digest()
    generator, start = torch.Generator(), int.from_bytes(digest, "little")
    for row, class_id in zip(rows, classes, strict=True):
        # The generator uses 32 bits of its seed: counting up from a start that depends on the run avoids duplicates.
        row.normal_(generator=generator.manual_seed((start + class_id) % 2**32))
    return nn.functional.normalize(rows, dim=1, out=rows)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Return half-precision tensors as fp32, others unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """Rows that are compared in a step with class sampling.

    Attributes:
        position_R: Ascending positions in the local weight.
        drawn_R: True if the row was drawn; otherwise it is included only as the target of some samples.
    """

    position_R: torch.Tensor
    drawn_R: torch.Tensor


def sample_rows(rows: range, label_N: torch.Tensor, *, rate: float, seed: int, step: int) -> SampledRows:
    """Return the rows compared in a step: those drawn and those that are targets.

    Source: An et al., PartialFC, CVPR 2022, with two differences: a hash of seed, step and class id decides whether a
    class is drawn, and a target that was not drawn counts only for its own samples. The result therefore depends
    neither on the number of ranks nor on how the batch is split.

    Args:
        rows: Class ids of the local rows.
        label_N: Targets of the compared samples.
        rate: Share of the classes to draw, in (0, 1].
        seed: Seed of the run.
        step: Global step of the run.
    """
    hashes = splitmix64(np.arange(rows.start, rows.stop, dtype=np.uint64), hash_key(f"classes {seed} {step}"))
    # Compare the upper 63 bits with "<=": at a rate of 1, the bound 2**63 of "<" would not fit into int64.
    drawn_C = torch.from_numpy((hashes >> np.uint64(1)).astype(np.int64) <= int(rate * 2**63) - 1).to(label_N.device)
    included_C = drawn_C.clone()
    local = (label_N >= rows.start) & (label_N < rows.stop)
    included_C[label_N[local] - rows.start] = True
    position_R = included_C.nonzero().squeeze(1)
    return SampledRows(position_R=position_R, drawn_R=drawn_C[position_R])


@dataclass(frozen=True, kw_only=True)
class CentreBlock:
    """A block of centre rows.

    Attributes:
        index: The rows in the local weight: a slice, or positions (K,).
        class_K: Their class ids, ascending.
        weight_KD: The rows, not normalised.
        drawn_K: See :attr:`SampledRows.drawn_R`; None without class sampling.
    """

    index: slice | torch.Tensor
    class_K: torch.Tensor
    weight_KD: torch.Tensor
    drawn_K: torch.Tensor | None = None

    def targets(self, label_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (samples, columns), both (n,): the samples whose target is in this block, and its column."""
        column_N = torch.searchsorted(self.class_K, label_N).clamp_(max=len(self.class_K) - 1)
        sample = (self.class_K[column_N] == label_N).nonzero().squeeze(1)
        return sample, column_N[sample]


def iter_blocks(
    weight_CD: torch.Tensor, first_class: int, size: int, sampled: SampledRows | None
) -> Iterator[CentreBlock]:
    """Yield all rows of a weight, or the sampled ones, in blocks, so that all of them are never copied at once.

    Args:
        weight_CD: The local rows.
        first_class: Class id of the first row.
        size: Rows per block.
        sampled: The rows to compare; None means all.
    """
    count = len(weight_CD) if sampled is None else len(sampled.position_R)
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        if sampled is None:
            class_K = torch.arange(part.start, part.stop, device=weight_CD.device) + first_class
            yield CentreBlock(index=part, class_K=class_K, weight_KD=weight_CD[part])
        else:
            index, drawn_K = sampled.position_R[part], sampled.drawn_R[part]
            yield CentreBlock(index=index, class_K=index + first_class, weight_KD=weight_CD[index], drawn_K=drawn_K)


def normalize_rows(rows_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (unit rows (N, D), reciprocals of their norms (N,)); zeros for rows shorter than ``MIN_ROW_NORM``."""
    norm_N = torch.linalg.vector_norm(rows_ND, dim=1)
    inverse_N = torch.where(norm_N > MIN_ROW_NORM, 1 / norm_N, 0.0)
    return rows_ND * inverse_N[:, None], inverse_N


def normalize_backward_(grad_ND: torch.Tensor, unit_ND: torch.Tensor, inverse_N: torch.Tensor) -> torch.Tensor:
    """Backpropagate through :func:`normalize_rows` in place; return ``grad_ND``."""
    along_N = torch.linalg.vecdot(grad_ND, unit_ND)
    return grad_ND.addcmul_(unit_ND, along_N[:, None], value=-1).mul_(inverse_N[:, None])


def hyperspherical_energy(centres: Centres, layout: Layout, comm: Comm) -> torch.Tensor:
    """Return the mean of ``angle ** -2`` over all pairs of classes, a scalar; 0 for fewer than two classes.

    Differentiable in the local rows; each rank gets their complete gradient. Collective if the centres are sharded:
    every rank must call it. The cost is C * C * D multiplications divided by the number of ranks. Identical centres
    count as being at the smallest angle that their dtype resolves.

    Source: Liu et al., NeurIPS 2018 (MHE), equation 1 with s = 2 and angles as distances.
    """
    return _Energy.apply(centres.weight, centres, comm if layout == "sharded" else SoloComm(comm.device))


def _class_blocks(weight_CD: torch.Tensor, rows: range, comm: Comm) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (class ids (J,), unit rows (J, D)) of all classes; each block has rows of every rank."""
    ids = torch.arange(rows.start, rows.stop, device=weight_CD.device)
    sizes = comm.all_gather_sizes(len(ids))
    for start in range(0, max(sizes), ENERGY_BLOCK):
        part = slice(start, start + ENERGY_BLOCK)
        counts = [len(range(size)[part]) for size in sizes]
        yield comm.all_gather_rows(ids[part], counts), comm.all_gather_rows(normalize_rows(weight_CD[part])[0], counts)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_CD: torch.Tensor, centres: Centres, comm: Comm) -> torch.Tensor:
        """Return the mean; its gradient is computed in the same pass, from the same angles."""
        classes = centres.classes
        unit_CD, inverse_C = normalize_rows(weight_CD)
        grad_CD, total = torch.zeros_like(weight_CD), weight_CD.new_zeros(())
        if classes > 1:
            for ids_J, unit_JD in _class_blocks(weight_CD, centres.rows, comm):
                for start in range(0, len(unit_CD), ENERGY_BLOCK):
                    part = slice(start, start + ENERGY_BLOCK)
                    value, slope_KJ = _block_energy(unit_CD[part], unit_JD, centres.rows.start + start, ids_J)
                    total += value
                    grad_CD[part].addmm_(slope_KJ, unit_JD)
        norm = 1 / max(1, classes * (classes - 1))
        ctx.save_for_backward(normalize_backward_(grad_CD, unit_CD, inverse_C).mul_(2 * norm))
        return comm.all_reduce_sum(total) * norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad_CD,) = ctx.saved_tensors
        return grad_CD * grads[0], None, None


def _block_energy(
    unit_KD: torch.Tensor, unit_JD: torch.Tensor, first_class: int, ids_J: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum over pairs of different classes, and its derivatives (K, J) with respect to their cosines."""
    cos_KJ = (unit_KD @ unit_JD.T).clamp_(-1, 1)
    ids_K = torch.arange(first_class, first_class + len(unit_KD), device=ids_J.device)
    other_KJ = ids_K[:, None] != ids_J
    sine_KJ = sine_of(cos_KJ).clamp_(min=min_sine(cos_KJ.dtype))
    angle_KJ = torch.atan2(sine_KJ, cos_KJ)
    return (angle_KJ**-2 * other_KJ).sum(), 2 * angle_KJ**-3 / sine_KJ * other_KJ
