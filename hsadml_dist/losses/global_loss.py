"""Forward and backward pass of the mean margin loss of the global batch against the centres of one rank, in blocks.

One implementation for every loss and layout. The backward pass needs the cosines again: the forward pass stores them
(``store``), or they are computed twice (``stream``); the gradients are identical.

Legend of shapes: B local samples, N compared samples, K rows of a block, C local rows, D embedding components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from hsadml_dist.losses.centres import CentreBlock, SampledRows, iter_blocks, normalize_backward_, normalize_rows
from hsadml_dist.losses.curves import identity
from hsadml_dist.losses.margins import Margin
from hsadml_dist.losses.reducers import Exchange, ReducedLoss, Reducer

LONG = 2.0**62
"""Components above this may overflow when they are squared and summed in fp32."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """How to compute the loss of one step.

    Attributes:
        margin: The margin at this step.
        reducer: Turns logits into losses.
        quality: Maps the norms of the compared embeddings (N,) to their qualities (N,).
        exchange: Communication with the other ranks.
        first_class: Class id of the first local row.
        sample: Maps the compared labels (N,) to the rows to compare with; None means all rows.
        share: Factor on the sum of the local losses, and hence on the gradients that are averaged over the ranks.
        centre_share: Factor on the gradient of the centres.
        store: True to keep the cosines for the backward pass.
        block: Rows per block.
    """

    margin: Margin
    reducer: Reducer
    quality: Callable[[torch.Tensor], torch.Tensor]
    exchange: Exchange
    first_class: int
    sample: Callable[[torch.Tensor], SampledRows | None]
    share: float
    centre_share: float
    store: bool
    block: int


def global_loss(
    emb_BD: torch.Tensor, weight_CD: torch.Tensor, bias: torch.Tensor | None, label_B: torch.Tensor, plan: StepPlan
) -> torch.Tensor:
    """Return ``plan.share`` times the sum of the losses of the local samples, a scalar in the dtype of the embeddings.

    Differentiable in embeddings, centres and bias. With sharded centres ``backward`` is collective, and a factor on
    the scalar (a loss scale) must be the same on all ranks.
    """
    with torch.autocast(emb_BD.device.type, enabled=False):
        return _GlobalLoss.apply(emb_BD, weight_CD.to(emb_BD.dtype), bias, label_B, plan)


class ScratchMatrix:
    """Memory for matrices (N, K), allocated once: faulting in new pages for each block would cost more than its sums.

    Args:
        like_ND: Determines the number of rows, dtype and device.
        columns: The largest number of columns.
    """

    def __init__(self, like_ND: torch.Tensor, columns: int) -> None:
        self._rows = len(like_ND)
        self._flat = like_ND.new_empty(self._rows * columns)

    def matrix(self, columns: int, start: int = 0) -> torch.Tensor:
        """Return the memory from column ``start`` on as a contiguous, uninitialised matrix (N, columns)."""
        return self._flat[self._rows * start : self._rows * (start + columns)].view(self._rows, columns)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The compared samples, as used by both passes."""

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
        emb_ND, label_N = plan.exchange.gather(emb_BD, label_B)
        samples, quality_N = _samples(emb_ND, label_N, plan)
        sampled = plan.sample(label_N)
        forward = _Forward(plan, samples, bias, columns=len(weight_CD) if sampled is None else len(sampled.position_R))
        for block in iter_blocks(weight_CD, plan.first_class, plan.block, sampled):
            forward.add(block)
        reduced, target_value_N, target_slope_N = forward.finish(quality_N)
        ctx.save_for_backward(weight_CD)
        ctx.forward_result = _Backward(
            plan=plan,
            samples=samples,
            bias=bias,
            sampled=sampled,
            reduced=reduced,
            target_value_N=target_value_N,
            target_slope_N=target_slope_N,
            stored_cosines=forward.stored_cosines,
        )
        return plan.exchange.select_own(reduced.loss_N).sum() * plan.share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight_CD,) = ctx.saved_tensors
        with torch.autocast(weight_CD.device.type, enabled=False):
            return (*ctx.forward_result.gradients(weight_CD, grads[0]), None, None)


def _samples(emb_ND: torch.Tensor, label_N: torch.Tensor, plan: StepPlan) -> tuple[_Samples, torch.Tensor]:
    factor_N = _downscaling(emb_ND)
    scaled_ND = emb_ND * factor_N[:, None]
    unit_ND, inverse_N = normalize_rows(scaled_ND)
    norm_N = torch.linalg.vector_norm(scaled_ND, dim=1) / factor_N
    scale_N = norm_N if plan.margin.scale is None else torch.full_like(norm_N, plan.margin.scale)
    samples = _Samples(unit_ND=unit_ND, inverse_N=inverse_N * factor_N, label_N=label_N, scale_N=scale_N)
    return samples, plan.quality(norm_N)


def _downscaling(emb_ND: torch.Tensor) -> torch.Tensor:
    """Return factors (N,), powers of two: 1 except for embeddings so long that the squares of a norm may overflow.

    An infinite norm would turn such an embedding into zeros, whose loss is that of right angles and has no gradient.
    """
    largest_N = torch.linalg.vector_norm(emb_ND, ord=torch.inf, dim=1)
    return torch.where(largest_N > LONG, LONG**-1, 1.0).to(emb_ND.dtype)


def _cosines(samples: _Samples, unit_KD: torch.Tensor, out_NK: torch.Tensor) -> torch.Tensor:
    # Rounding reaches 1 + 1e-7. Autograd does not see this clamp, so it does not zero any slope.
    return torch.mm(samples.unit_ND, unit_KD.T, out=out_NK).clamp_(-1, 1)


def _logits(
    value_NK: torch.Tensor, scale_N: torch.Tensor, bias: torch.Tensor | None, out_NK: torch.Tensor | None = None
) -> torch.Tensor:
    logit_NK = torch.mul(value_NK, scale_N[:, None], out=out_NK)
    return logit_NK if bias is None else logit_NK.add_(bias)


class _Forward:
    """Accumulates the partial sums of the blocks."""

    def __init__(self, plan: StepPlan, samples: _Samples, bias: torch.Tensor | None, columns: int) -> None:
        self.stored_cosines: list[torch.Tensor] = []
        block = min(plan.block, columns)
        self._cosines, self._logits = (
            ScratchMatrix(samples.unit_ND, n) for n in (columns if plan.store else block, block)
        )
        self._plan, self._samples, self._bias = plan, samples, bias
        self._target_cos_N = torch.zeros_like(samples.scale_N)
        no_logits = samples.scale_N.new_full((len(samples.scale_N), 1), -torch.inf)
        self._sums: Sequence[torch.Tensor] = plan.reducer.partial(no_logits)

    def add(self, block: CentreBlock) -> None:
        unit_KD, _ = normalize_rows(block.weight_KD)
        # Stored blocks are consecutive in memory; only the last one may be smaller.
        out_NK = self._cosines.matrix(len(unit_KD), start=len(self.stored_cosines) * self._plan.block)
        cos_NK = _cosines(self._samples, unit_KD, out_NK)
        sample, column = block.targets(self._samples.label_N)
        self._target_cos_N[sample] = cos_NK[sample, column]
        out_NK = self._logits.matrix(len(unit_KD))
        logit_NK = _logits(self._plan.margin.eta(cos_NK)[0], self._samples.scale_N, self._bias, out_NK)
        logit_NK[sample, column] = -torch.inf
        if block.drawn_K is not None:
            logit_NK.masked_fill_(~block.drawn_K, -torch.inf)
        self._sums = self._plan.reducer.combine(self._sums, self._plan.reducer.partial(logit_NK))
        if self._plan.store:
            self.stored_cosines.append(cos_NK)

    def finish(self, quality_N: torch.Tensor) -> tuple[ReducedLoss, torch.Tensor, torch.Tensor]:
        """Return the losses over the classes of all ranks, and values and slopes (N,) of the target curve."""
        exchange, reducer = self._plan.exchange, self._plan.reducer
        cos_N = exchange.sum(self._target_cos_N)
        total = reducer.over_ranks(self._sums, exchange)
        value_N, slope_N = self._plan.margin.psi(cos_N, quality_N)
        logit_N = _logits(value_N[:, None], self._samples.scale_N, self._bias).squeeze(1)
        return reducer.reduce(total, logit_N), value_N, slope_N


@dataclass(frozen=True, kw_only=True)
class _Backward:
    """The backward pass, with what it needs from the forward pass."""

    plan: StepPlan
    samples: _Samples
    bias: torch.Tensor | None
    sampled: SampledRows | None
    reduced: ReducedLoss
    target_value_N: torch.Tensor
    target_slope_N: torch.Tensor
    stored_cosines: list[torch.Tensor]

    def gradients(
        self, weight_CD: torch.Tensor, outer: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return gradients of embeddings (B, D), centres (C, D) and bias ()."""
        samples, plan = self.samples, self.plan
        grad_CD = torch.zeros_like(weight_CD) if self.sampled is not None else torch.empty_like(weight_CD)
        cos_grad_ND = torch.zeros_like(samples.unit_ND)
        scale_grad_N, bias_grad = torch.zeros_like(samples.scale_N), torch.zeros_like(outer)
        cosines, logits = (ScratchMatrix(samples.unit_ND, min(plan.block, len(weight_CD))) for _ in range(2))
        for block in iter_blocks(weight_CD, plan.first_class, plan.block, self.sampled):
            unit_KD, inverse_K = normalize_rows(block.weight_KD)
            if self.stored_cosines:  # released block by block; empty in a second backward pass
                cos_NK = self.stored_cosines.pop(0)
            else:
                cos_NK = _cosines(samples, unit_KD, cosines.matrix(len(unit_KD)))
            slope_NK = self._slopes(block, cos_NK, logits.matrix(len(unit_KD)), scale_grad_N, bias_grad)
            cos_grad_ND.addmm_(slope_NK, unit_KD)
            grad_KD = grad_CD[block.index]
            torch.mm(slope_NK.T, samples.unit_ND, out=grad_KD)
            normalize_backward_(grad_KD, unit_KD, inverse_K).mul_(outer * plan.centre_share)
            if block.drawn_K is not None:  # indexing with positions returned a copy, with a slice a view
                grad_CD[block.index] = grad_KD
        emb_grad_ND = normalize_backward_(cos_grad_ND, samples.unit_ND, samples.inverse_N)
        if plan.margin.scale is None:
            emb_grad_ND.addcmul_(samples.unit_ND, scale_grad_N[:, None])
        own_BD = plan.exchange.reduce_own(emb_grad_ND).mul_(outer * plan.share)
        return own_BD, grad_CD, None if self.bias is None else bias_grad * outer * plan.share

    def _slopes(
        self,
        block: CentreBlock,
        cos_NK: torch.Tensor,
        out_NK: torch.Tensor,
        scale_grad_N: torch.Tensor,
        bias_grad: torch.Tensor,
    ) -> torch.Tensor:
        """Return the derivatives by the cosines of a block, overwriting them; add those by the scales and the bias."""
        samples, reduced = self.samples, self.reduced
        value_NK, eta_slope_NK = self.plan.margin.eta(cos_NK)
        logit_NK = _logits(value_NK, samples.scale_N, self.bias, out_NK)
        grad_NK = self.plan.reducer.others_grad_(logit_NK, reduced.shift_N)
        if block.drawn_K is not None:
            grad_NK.masked_fill_(~block.drawn_K, 0.0)  # a product would turn overflowed logits of these rows into NaN
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
