"""The mean margin loss of the global batch against one rank's centres, forwards and backwards, block by block.

One path for every loss and layout. The backward pass needs the cosines again: it keeps them (``store``) or computes
them a second time (``stream``); the gradients differ by nothing.

Legend of shapes: B local samples, N compared samples, K rows of a block, C local rows, D embedding components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hsadml_dist.losses.blocks import (
    CentreBlock,
    SampledRows,
    ScratchMatrix,
    iter_blocks,
    normalize_backward_,
    normalize_rows,
)
from hsadml_dist.losses.curves import identity
from hsadml_dist.losses.exchange import Exchange
from hsadml_dist.losses.margins import Margin
from hsadml_dist.losses.reducers import ReducedLoss, Reducer


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """How one loss is computed.

    Attributes:
        margin: The pair in force.
        reducer: How logits become losses.
        quality: Maps the lengths of the compared embeddings (N,) to their qualities (N,).
        exchange: The messages.
        first: Class id of the first local row.
        choose: Maps the compared labels (N,) to the rows that take part; None: all.
        share: Factor on the sum of this rank's losses, and so on the gradients that are averaged over the ranks.
        centre_share: Factor on the gradient of the centres.
        store: Whether cosines are kept for the backward pass.
        block: Rows of a block.
    """

    margin: Margin
    reducer: Reducer
    quality: Callable[[torch.Tensor], torch.Tensor]
    exchange: Exchange
    first: int
    choose: Callable[[torch.Tensor], SampledRows | None]
    share: float
    centre_share: float
    store: bool
    block: int


def global_loss(
    emb_BD: torch.Tensor, weight_CD: torch.Tensor, bias: torch.Tensor | None, label_B: torch.Tensor, plan: StepPlan
) -> torch.Tensor:
    """Return ``plan.share`` times the sum of the local samples' losses, a scalar in the embeddings' dtype.

    Differentiable in embeddings, centres and bias. The scalar must be multiplied by the same number on all ranks
    before ``backward`` is called (a loss scale), which all of them do in the same order.
    """
    with torch.autocast(emb_BD.device.type, enabled=False):
        return _GlobalLoss.apply(emb_BD, weight_CD.to(emb_BD.dtype), bias, label_B, plan)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The compared samples, as both passes need them."""

    unit_ND: torch.Tensor
    inverse_N: torch.Tensor
    label_N: torch.Tensor
    scale_N: torch.Tensor


class _GlobalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        emb_BD: torch.Tensor,
        weight_CD: torch.Tensor,
        bias: torch.Tensor | None,
        label_B: torch.Tensor,
        plan: StepPlan,
    ) -> torch.Tensor:
        """Return the scalar."""
        emb_ND, label_N = plan.exchange.gather(emb_BD, label_B)
        samples, quality_N = _samples(emb_ND, label_N, plan)
        rows = plan.choose(label_N)
        forward = _Forward(plan, samples, bias, taken=len(weight_CD) if rows is None else len(rows.position_R))
        for block in iter_blocks(weight_CD, plan.first, plan.block, rows):
            forward.take(block)
        reduced, target_value_N, target_slope_N = forward.finish(quality_N)
        ctx.save_for_backward(weight_CD)
        ctx.kept = _Backward(
            plan=plan,
            samples=samples,
            bias=bias,
            rows=rows,
            reduced=reduced,
            target_value_N=target_value_N,
            target_slope_N=target_slope_N,
            cosines=forward.kept,
        )
        return plan.exchange.own(reduced.loss_N).sum() * plan.share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients of embeddings (B, D), centres (C, D) and bias ()."""
        (weight_CD,) = ctx.saved_tensors
        with torch.autocast(weight_CD.device.type, enabled=False):
            return (*ctx.kept.gradients(weight_CD, grads[0]), None, None)


def _samples(emb_ND: torch.Tensor, label_N: torch.Tensor, plan: StepPlan) -> tuple[_Samples, torch.Tensor]:
    unit_ND, inverse_N = normalize_rows(emb_ND)
    norm_N = torch.linalg.vector_norm(emb_ND, dim=1)
    scale_N = norm_N if plan.margin.scale is None else torch.full_like(norm_N, plan.margin.scale)
    return _Samples(unit_ND=unit_ND, inverse_N=inverse_N, label_N=label_N, scale_N=scale_N), plan.quality(norm_N)


def _cosines(samples: _Samples, unit_KD: torch.Tensor, out_NK: torch.Tensor) -> torch.Tensor:
    # Rounding reaches 1 + 1e-7. The slope beyond the clamp is not 0: nothing differentiates through it.
    return torch.mm(samples.unit_ND, unit_KD.T, out=out_NK).clamp_(-1, 1)


def _logits(
    value_NK: torch.Tensor, scale_N: torch.Tensor, bias: torch.Tensor | None, out_NK: torch.Tensor | None = None
) -> torch.Tensor:
    logit_NK = torch.mul(value_NK, scale_N[:, None], out=out_NK)
    return logit_NK if bias is None else logit_NK.add_(bias)


class _Forward:
    """Goes through the blocks and keeps their sums."""

    def __init__(self, plan: StepPlan, samples: _Samples, bias: torch.Tensor | None, taken: int) -> None:
        self.kept: list[torch.Tensor] = []
        block = min(plan.block, taken)
        self._cosines, self._logits = (
            ScratchMatrix(samples.unit_ND, n) for n in (taken if plan.store else block, block)
        )
        self._plan, self._samples, self._bias = plan, samples, bias
        self._target_cos_N = torch.zeros_like(samples.scale_N)
        nothing = samples.scale_N.new_full((len(samples.scale_N), 1), -torch.inf)
        self._sums: Sequence[torch.Tensor] = plan.reducer.partial(nothing)

    def take(self, block: CentreBlock) -> None:
        """Add a block's classes."""
        unit_KD, _ = normalize_rows(block.weight_KD)
        # Those that are kept stand behind one another; only the last block is smaller than the others.
        out_NK = self._cosines.matrix(len(unit_KD), start=len(self.kept) * self._plan.block)
        cos_NK = _cosines(self._samples, unit_KD, out_NK)
        sample, column = block.targets(self._samples.label_N)
        self._target_cos_N[sample] = cos_NK[sample, column]
        out_NK = self._logits.matrix(len(unit_KD))
        logit_NK = _logits(self._plan.margin.eta(cos_NK)[0], self._samples.scale_N, self._bias, out_NK)
        logit_NK[sample, column] = -torch.inf
        if block.drawn_K is not None:
            logit_NK.masked_fill_(~block.drawn_K, -torch.inf)
        self._sums = self._plan.reducer.joined(self._sums, self._plan.reducer.partial(logit_NK))
        if self._plan.store:
            self.kept.append(cos_NK)

    def finish(self, quality_N: torch.Tensor) -> tuple[ReducedLoss, torch.Tensor, torch.Tensor]:
        """Return the losses of all samples over all ranks' classes, and psi's values and slopes (N,)."""
        exchange, reducer = self._plan.exchange, self._plan.reducer
        cos_N = exchange.total(self._target_cos_N)
        total = reducer.over_ranks(self._sums, exchange)
        value_N, slope_N = self._plan.margin.psi(cos_N, quality_N)
        logit_N = _logits(value_N[:, None], self._samples.scale_N, self._bias).squeeze(1)
        return reducer.reduced(total, logit_N), value_N, slope_N


@dataclass(frozen=True, kw_only=True)
class _Backward:
    """What the backward pass needs of the forward one."""

    plan: StepPlan
    samples: _Samples
    bias: torch.Tensor | None
    rows: SampledRows | None
    reduced: ReducedLoss
    target_value_N: torch.Tensor
    target_slope_N: torch.Tensor
    cosines: list[torch.Tensor]

    def gradients(
        self, weight_CD: torch.Tensor, outer: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return gradients of embeddings, centres and bias."""
        samples, plan = self.samples, self.plan
        grad_CD = torch.zeros_like(weight_CD) if self.rows is not None else torch.empty_like(weight_CD)
        cos_grad_ND = torch.zeros_like(samples.unit_ND)
        scale_grad_N, bias_grad = torch.zeros_like(samples.scale_N), torch.zeros_like(outer)
        cosines, logits = (ScratchMatrix(samples.unit_ND, min(plan.block, len(weight_CD))) for _ in range(2))
        for block, kept_NK in zip(self._blocks(weight_CD), self._kept(), strict=False):
            unit_KD, inverse_K = normalize_rows(block.weight_KD)
            cos_NK = _cosines(samples, unit_KD, cosines.matrix(len(unit_KD))) if kept_NK is None else kept_NK
            slope_NK = self._slopes(block, cos_NK, logits.matrix(len(unit_KD)), scale_grad_N, bias_grad)
            cos_grad_ND.addmm_(slope_NK, unit_KD)
            grad_KD = grad_CD[block.place]
            torch.mm(slope_NK.T, samples.unit_ND, out=grad_KD)
            normalize_backward_(grad_KD, unit_KD, inverse_K).mul_(outer * plan.centre_share)
            if block.drawn_K is not None:  # positions gave a copy, a slice its place
                grad_CD[block.place] = grad_KD
        emb_grad_ND = normalize_backward_(cos_grad_ND, samples.unit_ND, samples.inverse_N)
        if plan.margin.scale is None:
            emb_grad_ND.addcmul_(samples.unit_ND, scale_grad_N[:, None])
        own_BD = plan.exchange.own_total(emb_grad_ND).mul_(outer * plan.share)
        return own_BD, grad_CD, None if self.bias is None else bias_grad * outer * plan.share

    def _blocks(self, weight_CD: torch.Tensor) -> Iterator[CentreBlock]:
        return iter_blocks(weight_CD, self.plan.first, self.plan.block, self.rows)

    def _kept(self) -> Iterator[torch.Tensor | None]:
        """Yield the cosines of each block and let go of them; None for those not kept, or used by an earlier pass."""
        while self.cosines:
            yield self.cosines.pop(0)
        while True:
            yield None

    def _slopes(
        self,
        block: CentreBlock,
        cos_NK: torch.Tensor,
        out_NK: torch.Tensor,
        scale_grad_N: torch.Tensor,
        bias_grad: torch.Tensor,
    ) -> torch.Tensor:
        """Return the losses' derivatives by a block's cosines, which are used up; add those by scales and bias."""
        samples, reduced = self.samples, self.reduced
        value_NK, eta_slope_NK = self.plan.margin.eta(cos_NK)
        logit_NK = _logits(value_NK, samples.scale_N, self.bias, out_NK)
        grad_NK = self.plan.reducer.others_grad_(logit_NK, reduced.shift_N)
        if block.drawn_K is not None:
            grad_NK.masked_fill_(~block.drawn_K, 0.0)  # not a product: what was left out may have overflowed
        sample, column = block.targets(samples.label_N)
        grad_NK[sample, column] = 0.0
        if self.plan.margin.scale is None:
            scale_grad_N += value_NK.mul_(grad_NK).sum(dim=1) * reduced.factor_N
            scale_grad_N[sample] += (reduced.target_grad_N * self.target_value_N)[sample]
        if self.bias is not None:
            bias_grad += grad_NK.sum(dim=1) @ reduced.factor_N + reduced.target_grad_N[sample].sum()
        grad_NK.mul_((samples.scale_N * reduced.factor_N)[:, None])
        if self.plan.margin.eta is not identity:
            grad_NK.mul_(eta_slope_NK)
        grad_NK[sample, column] = (reduced.target_grad_N * samples.scale_N * self.target_slope_N)[sample]
        return grad_NK
