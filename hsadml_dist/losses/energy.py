"""Hyperspherical energy of the centres, a regulariser that spreads them over the sphere.

Source: Liu et al., NeurIPS 2018 (MHE), equation 1 with s = 2 and angles as distances.

Legend of shapes: C classes, K rows of a block, J rows of a block of all ranks, D embedding components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hsadml_dist.comm import Comm
from hsadml_dist.losses.blocks import normalize_backward_, normalize_rows
from hsadml_dist.losses.centres import Centres, Layout
from hsadml_dist.losses.curves import min_sine, sine_of

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
