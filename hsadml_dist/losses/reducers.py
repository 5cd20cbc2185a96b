"""Reducers: how the logits of all classes, which come in blocks, become a sample's loss and the logits' gradients.

A reducer sees each block of the other classes once on the way forward and once on the way back; between the two stand
sums over all blocks, which ranks with other classes add to. The target's gradient is never ``p - 1``: that cancels all
digits of a well separated sample.

Legend of shapes: N samples, K classes of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import logsigmoid

from hsadml_dist.losses.exchange import Exchange


@dataclass(frozen=True, kw_only=True)
class ReducedLoss:
    """What the logits of all classes have come to.

    Attributes:
        loss_N: Losses.
        target_grad_N: Derivatives of the losses by the target's logit.
        shift_N: What :meth:`Reducer.others_grad_` needs to know again.
        factor_N: Factor on all that it returns, left to the caller, who has others to multiply by.
    """

    loss_N: torch.Tensor
    target_grad_N: torch.Tensor
    shift_N: torch.Tensor
    factor_N: torch.Tensor


class Reducer(Protocol):
    """Turns logits into losses; works in place on the blocks it is given."""

    def initial_bias(self, classes: int) -> float | None:
        """Return where the trained bias on all logits starts; None: there is none."""
        ...

    def partial(self, logit_NK: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return what a block of other classes adds, vectors (N,); the block is used up."""
        ...

    def joined(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return what two sets of classes add together."""
        ...

    def over_ranks(self, own: Sequence[torch.Tensor], exchange: Exchange) -> Sequence[torch.Tensor]:
        """Return what the classes of all ranks add together."""
        ...

    def reduced(self, total: Sequence[torch.Tensor], target_N: torch.Tensor) -> ReducedLoss:
        """Return losses and gradients for the targets' logits (N,)."""
        ...

    def others_grad_(self, logit_NK: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
        """Turn a block of other classes' logits into the losses' derivatives by them, in place; returns it.

        What is returned is still to be multiplied by :attr:`ReducedLoss.factor_N`.
        """
        ...


@dataclass(frozen=True)
class SoftmaxReducer:
    """Cross-entropy of the softmax: ``log(1 + sum exp(other - target))``."""

    def initial_bias(self, classes: int) -> float | None:
        """See :class:`Reducer`."""
        return None

    def partial(self, logit_NK: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the largest logit and the sum of the exponentials of the distances to it."""
        top_N = _finite(logit_NK.amax(dim=1))
        return top_N, logit_NK.sub_(top_N[:, None]).exp_().sum(dim=1)

    def joined(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """See :class:`Reducer`."""
        top_N = torch.maximum(one[0], other[0])
        return top_N, one[1] * (one[0] - top_N).exp_() + other[1] * (other[0] - top_N).exp_()

    def over_ranks(self, own: Sequence[torch.Tensor], exchange: Exchange) -> Sequence[torch.Tensor]:
        """See :class:`Reducer`."""
        top_N = exchange.largest(own[0].clone())
        return top_N, exchange.total(own[1] * (own[0] - top_N).exp_())

    def reduced(self, total: Sequence[torch.Tensor], target_N: torch.Tensor) -> ReducedLoss:
        """See :class:`Reducer`."""
        # The largest logit and the logarithm of the sum are never added: together they would lose the latter's digits.
        top_N = torch.maximum(total[0], target_N)
        own_N = (target_N - top_N).exp()
        others_N = total[1] * (total[0] - top_N).exp_()
        sum_N = others_N + own_N
        loss_N = torch.log1p(others_N + (own_N - 1)) + (top_N - target_N)
        return ReducedLoss(loss_N=loss_N, target_grad_N=-others_N / sum_N, shift_N=top_N, factor_N=1 / sum_N)

    def others_grad_(self, logit_NK: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
        """Return the probabilities but for their sum."""
        return logit_NK.sub_(shift_N[:, None]).exp_()


@dataclass(frozen=True, kw_only=True)
class BinaryReducer:
    """SphereFace2's binary decisions, one a class. Source: Wen et al., ICLR 2022, equation 5.

    ``(w softplus(-target) + (1 - w) sum softplus(other)) / scale``, logits with a trained bias.

    Attributes:
        positive_weight: w, the share of the target class (lambda in the paper).
        scale: r in the paper.
        start: Logits of target and others at right angles, before any bias: where training starts.
    """

    positive_weight: float
    scale: float
    start: tuple[float, float]

    def initial_bias(self, classes: int) -> float | None:
        """Return the bias at which the targets' pull and the others' push are equal at right angles."""
        if classes == 1 or self.positive_weight == 1:
            return -self.start[0]  # nothing pushes
        ratio = self.positive_weight / ((1 - self.positive_weight) * (classes - 1))
        # ratio * sigmoid(-(target + b)) = sigmoid(other + b), quadratic in exp(-b); the form that cancels no digits.
        target, other = self.start
        root = math.sqrt((1 - ratio) ** 2 + 4 * ratio * math.exp(target - other))
        if ratio > 1:
            return math.log(ratio - 1 + root) - target - math.log(2)
        return math.log(2 * ratio) - other - math.log(1 - ratio + root)

    def partial(self, logit_NK: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the sum of the others' losses."""
        return (logsigmoid(logit_NK.neg_()).sum(dim=1).neg_(),)  # softplus cuts off digits from 20 on

    def joined(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """See :class:`Reducer`."""
        return (one[0] + other[0],)

    def over_ranks(self, own: Sequence[torch.Tensor], exchange: Exchange) -> Sequence[torch.Tensor]:
        """See :class:`Reducer`."""
        return (exchange.total(own[0].clone()),)

    def reduced(self, total: Sequence[torch.Tensor], target_N: torch.Tensor) -> ReducedLoss:
        """See :class:`Reducer`."""
        positive, negative = self.positive_weight / self.scale, (1 - self.positive_weight) / self.scale
        loss_N = negative * total[0] - positive * logsigmoid(target_N)
        return ReducedLoss(
            loss_N=loss_N,
            target_grad_N=-positive * torch.sigmoid(-target_N),
            shift_N=target_N,
            factor_N=torch.full_like(target_N, negative),
        )

    def others_grad_(self, logit_NK: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
        """See :class:`Reducer`."""
        return logit_NK.sigmoid_()


def _finite(top_N: torch.Tensor) -> torch.Tensor:
    """Return the largest logits, or the least number where a block holds no other class: -inf - -inf is no number."""
    return top_N.clamp_(min=torch.finfo(top_N.dtype).min)
