"""Class centres, their initialisation and layout, and the hyperspherical energy that spreads them over the sphere.

Source of the energy: Liu et al., NeurIPS 2018 (MHE), equation 1 with s = 2 and angles as distances.

Legend of shapes: C classes, K rows on this rank or of a block, J rows of a block of all ranks, D embedding components.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.losses.blocks import normalize_backward_, normalize_rows
from hsadml_dist.losses.curves import min_sine, sine_of

Layout = Literal["replicated", "sharded"]


class Centres(nn.Module):
    """The centres of a contiguous range of the classes: of all of them where replicated, of a rank's where sharded.

    Attributes:
        classes: C, the number of all classes.
        rows: Class ids of the rows held here; may be none.
        weight: Parameter (K, D); only the rows' directions matter to the losses.
    """

    def __init__(self, classes: int, dim: int, seed: int, rows: range | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.rows = range(classes) if rows is None else rows
        self.weight = nn.Parameter(initial_rows(self.rows, dim, seed))


def resolve_layout(
    layout: Literal["auto", "replicated", "sharded"], *, classes: int, global_batch: int, world_size: int
) -> Layout:
    """Return the layout that ``auto`` stands for: the one whose messages are smaller.

    Replicated centres reduce a gradient of C * D numbers a step; sharded ones gather and scatter 2 * N * D.
    """
    if layout != "auto":
        return layout
    return "sharded" if world_size > 1 and classes > 2 * global_batch else "replicated"


def initial_rows(classes: range, dim: int, seed: int) -> torch.Tensor:
    """Return unit rows (len(classes), D), fp32; a row depends on (seed, class id) only, so never on the layout."""
    rows = torch.empty(len(classes), dim)
    generator, start = torch.Generator(), _start(seed)
    for row, class_id in zip(rows, classes, strict=True):
        # The generator keeps 32 bits of its seed: from a start of the run's own, classes count up, so no two agree.
        row.normal_(generator=generator.manual_seed((start + class_id) % 2**32))
    return nn.functional.normalize(rows, dim=1, out=rows)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Return halves as fp32; fp32 and fp64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _start(seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"centres {seed}".encode(), digest_size=4).digest(), "little")


ENERGY_BLOCK = 1024
"""Rows compared with rows at a time."""


def hyperspherical_energy(centres: Centres, layout: Layout, comm: Comm) -> torch.Tensor:
    """Return the mean of ``angle ** -2`` over all pairs of classes, a scalar; 0 for fewer than two classes.

    Differentiable in the rows held here: each rank's gradient is the whole one of its rows. With sharded centres all
    ranks must call it together. The time is that of C * C * D multiplications over W ranks. Equal centres count as
    those at the smallest angle that their dtype can tell.
    """
    return _Energy.apply(centres.weight, _Pairs(centres=centres, comm=comm if layout == "sharded" else None))


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Whom the rows of this rank are compared with.

    Attributes:
        centres: This rank's rows.
        comm: The ranks that hold the others; None: this one holds all.
    """

    centres: Centres
    comm: Comm | None

    def blocks(self, weight_CD: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (class ids (J,), unit rows (J, D)) of all classes, some of each rank's at a time."""
        ids = torch.arange(self.centres.rows.start, self.centres.rows.stop, device=weight_CD.device)
        sizes = [len(ids)] if self.comm is None else self.comm.all_gather_sizes(len(ids))
        for start in range(0, max(sizes), ENERGY_BLOCK):
            part = slice(start, start + ENERGY_BLOCK)
            unit_JD = normalize_rows(weight_CD[part])[0]
            if self.comm is None:
                yield ids[part], unit_JD
            else:
                here = [len(range(size)[part]) for size in sizes]
                yield self.comm.all_gather_rows(ids[part], here), self.comm.all_gather_rows(unit_JD, here)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Add over the ranks."""
        return value if self.comm is None else self.comm.all_reduce_sum(value)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_CD: torch.Tensor, pairs: _Pairs) -> torch.Tensor:
        """Return the mean; its gradient is computed in passing, from the same angles."""
        classes = pairs.centres.classes
        unit_CD, inverse_C = normalize_rows(weight_CD)
        grad_CD, total = torch.zeros_like(weight_CD), weight_CD.new_zeros(())
        if classes > 1:
            for ids_J, unit_JD in pairs.blocks(weight_CD):
                for start in range(0, len(unit_CD), ENERGY_BLOCK):
                    part = slice(start, start + ENERGY_BLOCK)
                    first = pairs.centres.rows.start + start
                    value, slope_KJ = _block_energy(unit_CD[part], unit_JD, first, ids_J)
                    total += value
                    grad_CD[part].addmm_(slope_KJ, unit_JD)
        norm = 1 / max(1, classes * (classes - 1))
        ctx.save_for_backward(normalize_backward_(grad_CD, unit_CD, inverse_C).mul_(2 * norm))
        return pairs.total(total) * norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of the rows."""
        (grad_CD,) = ctx.saved_tensors
        return grad_CD * grads[0], None


def _block_energy(
    unit_KD: torch.Tensor, unit_JD: torch.Tensor, first: int, ids_J: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum over pairs, and its derivatives (K, J) by their cosines; a class is no pair with itself."""
    cos_KJ = (unit_KD @ unit_JD.T).clamp_(-1, 1)
    ids_K = torch.arange(first, first + len(unit_KD), device=ids_J.device)
    other_KJ = ids_K[:, None] != ids_J
    sine_KJ = sine_of(cos_KJ).clamp_(min=min_sine(cos_KJ.dtype))
    angle_KJ = torch.atan2(sine_KJ, cos_KJ)
    return (angle_KJ**-2 * other_KJ).sum(), 2 * angle_KJ**-3 / sine_KJ * other_KJ
