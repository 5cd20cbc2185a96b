"""The margin loss over the global batch, written once for every pair (psi, eta).

Every rank returns its share of the true global mean, scaled so that the average over ranks, which data-parallel
engines take of all gradients, is the gradient of that mean: also where ranks hold unequal numbers of samples, or none.

With replicated centres and a loss that is a sum over samples, no embedding has to travel: only the counts do. Sharded
centres and batch-coupled terms put their gathering here, between the embeddings and :class:`_MarginCrossEntropy`.

Legend of shapes: B local samples, N samples over all ranks, W ranks, C classes, D embedding components.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hsadml_dist.comm import Comm
from hsadml_dist.losses.centres import ReplicatedCentres, at_least_fp32
from hsadml_dist.losses.margins import Curve, Margin, MarginSchedule


class DistributedLoss(nn.Module):
    """Margin softmax loss of the global batch.

    Attributes:
        centres: The class centres, trained by an optimiser of their own.
    """

    def __init__(self, centres: ReplicatedCentres, schedule: MarginSchedule, comm: Comm) -> None:
        super().__init__()
        self.centres = centres
        self._schedule = schedule
        self._comm = comm

    def forward(self, emb_BD: torch.Tensor, label_B: torch.Tensor, *, step: int, count: int) -> torch.Tensor:
        """Return this rank's share of the mean loss.

        Args:
            emb_BD: Embeddings (B, D), any float dtype; halves are raised to fp32, fp64 stays. B may be 0.
            label_B: Class ids (B,), int64, in [0, C).
            step: The run's global step, from 1; drives annealing.
            count: N, the number of samples of the whole step over all ranks.

        Returns:
            Scalar: ``W / N * sum of local losses``. Its average over ranks is the global mean.
        """
        loss_B = margin_losses(at_least_fp32(emb_BD), self.centres(), label_B, self._schedule(step))
        return loss_B.sum() * (self._comm.topology.world_size / count)


def margin_losses(emb_BD: torch.Tensor, centre_CD: torch.Tensor, label_B: torch.Tensor, margin: Margin) -> torch.Tensor:
    """Return each sample's loss (B,), fp32 or fp64, differentiable in embeddings and unit centres."""
    with torch.autocast(emb_BD.device.type, enabled=False):
        cos_BC = cosines(emb_BD, centre_CD)
        scale_B = emb_BD.norm(dim=1) if margin.scale is None else emb_BD.new_full((len(emb_BD),), margin.scale)
        return _MarginCrossEntropy.apply(cos_BC, scale_B, label_B, margin.psi, margin.eta)


def cosines(emb_BD: torch.Tensor, centre_CD: torch.Tensor) -> torch.Tensor:
    """Return (B, C) cosines, clamped to [-1, 1]; an embedding of length zero has cosines 0 and gradient 0."""
    unit_BD = nn.functional.normalize(emb_BD, dim=1)
    # An embedding of length zero has no direction to improve: without the factor its gradient would be 1e12 and more.
    unit_BD = unit_BD * (emb_BD != 0).any(dim=1, keepdim=True)
    cos_BC = unit_BD @ centre_CD.to(emb_BD.dtype).t()
    # Rounding reaches 1 + 1e-7; a clamp would also cut the gradient off there, so only the value is moved.
    return cos_BC + (cos_BC.clamp(-1, 1) - cos_BC).detach()


class _MarginCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``scale * psi`` against ``scale * eta``.

    The target logit's gradient is taken as ``-sum of the others' probabilities``: ``p_target - 1`` cancels all digits
    of a well separated sample.
    """

    @staticmethod
    def forward(
        ctx: Any, cos_BC: torch.Tensor, scale_B: torch.Tensor, label_B: torch.Tensor, psi: Curve, eta: Curve
    ) -> torch.Tensor:
        """Return the losses (B,)."""
        hit_BC = nn.functional.one_hot(label_B, cos_BC.shape[1]).bool()
        value_BC, slope_BC = eta(cos_BC)
        target_value_BC, target_slope_BC = psi(cos_BC)
        value_BC = torch.where(hit_BC, target_value_BC, value_BC)
        slope_BC = torch.where(hit_BC, target_slope_BC, slope_BC)
        logit_BC = scale_B[:, None] * value_BC
        # Distances to the target's logit: the loss is log(1 + sum exp), exact where the naive form rounds to 0.
        gap_BC = (logit_BC - logit_BC[hit_BC][:, None]).masked_fill(hit_BC, -torch.inf)
        gap_B = torch.logsumexp(gap_BC, dim=1)
        loss_B = torch.logaddexp(gap_B, torch.zeros_like(gap_B))  # softplus overflows, or cuts off digits from 20 on
        ctx.save_for_backward(gap_BC, gap_B, value_BC, slope_BC, scale_B, hit_BC)
        return loss_B

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients of cosines (B, C) and scales (B,)."""
        gap_BC, gap_B, value_BC, slope_BC, scale_B, hit_BC = ctx.saved_tensors
        denominator_B = torch.logaddexp(gap_B, torch.zeros_like(gap_B))
        other_BC = torch.exp(gap_BC - denominator_B[:, None])
        logit_grad_BC = torch.where(hit_BC, -other_BC.sum(dim=1, keepdim=True), other_BC) * grads[0][:, None]
        cos_grad_BC = logit_grad_BC * slope_BC * scale_B[:, None]
        return cos_grad_BC, (logit_grad_BC * value_BC).sum(dim=1), None, None, None
