"""Reducers turn the logits of all classes, which come in blocks, into losses and their gradients by the logits.

A reducer processes each block of other classes once in the forward and once in the backward pass. In between, partial
sums are combined over all blocks and, if ranks hold different classes, over the ranks. The gradient of the target logit
is never computed as ``p - 1``, which cancels all digits of a well separated sample.

Legend of shapes: B local samples, N compared samples, K classes of a block, D embedding components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import logsigmoid

from hsadml_dist.distributed.comm import Comm


class Exchange:
    """Communication of one loss between ranks that hold different centres; one instance per loss.

    Every rank compares the samples of all ranks with its own centres. With a :class:`SoloComm` it compares its own
    samples with all centres, without communication. Collective: every rank must call the same methods in the same
    order.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._sizes: list[int] = []

    def gather(self, emb_BD: torch.Tensor, label_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings (N, D) and labels (N,) that are compared with the local centres."""
        self._sizes = self._comm.all_gather_sizes(len(label_B))
        return self._comm.all_gather_rows(emb_BD, self._sizes), self._comm.all_gather_rows(label_B, self._sizes)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        return self._comm.all_reduce_sum(tensor)

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the maximum over the ranks, in place."""
        return self._comm.all_reduce_max_tensor(tensor)

    def select_own(self, rows_N: torch.Tensor) -> torch.Tensor:
        """Return the local samples (B, ...) of rows that are equal on all ranks."""
        return rows_N.split(self._sizes)[self._comm.topology.rank]

    def reduce_own(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Return the local samples (B, D) of the sum of the rows over the ranks."""
        return self._comm.reduce_scatter_rows(rows_ND, self._sizes)


@dataclass(frozen=True, kw_only=True)
class ReducedLoss:
    """Losses, and what the backward pass needs.

    Attributes:
        loss_N: Losses.
        target_grad_N: Derivatives of the losses with respect to the target logits.
        shift_N: Argument of :meth:`Reducer.others_grad_`.
        factor_N: Factor on the result of :meth:`Reducer.others_grad_`; the caller multiplies it with its own factors.
    """

    loss_N: torch.Tensor
    target_grad_N: torch.Tensor
    shift_N: torch.Tensor
    factor_N: torch.Tensor


class Reducer(Protocol):
    """Turns logits into losses; works in place on the blocks that it receives."""

    def initial_bias(self, classes: int) -> float | None:
        """Return the initial value of the learnt bias on all logits; None means that there is no bias."""

    def partial(self, logit_NK: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the partial sums (N,) of a block of other classes; overwrites the block."""

    def combine(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the partial sums of two sets of classes together."""

    def over_ranks(self, own: Sequence[torch.Tensor], exchange: Exchange) -> Sequence[torch.Tensor]:
        """Return the partial sums of the classes of all ranks."""

    def reduce(self, total: Sequence[torch.Tensor], target_N: torch.Tensor) -> ReducedLoss:
        """Return losses and gradients, given the sums over all other classes and the target logits (N,)."""

    def others_grad_(self, logit_NK: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
        """Overwrite a block of other logits with the derivatives of the losses with respect to them; return the block.

        The caller multiplies the result by :attr:`ReducedLoss.factor_N`.
        """

    def probabilities(self, logit_NC: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (N, C) of all classes, given their logits without margin; each row sums to 1."""


@dataclass(frozen=True)
class SoftmaxReducer:
    """Cross-entropy of the softmax: ``log(1 + sum exp(other - target))``. See :class:`Reducer`."""

    def initial_bias(self, classes: int) -> float | None:
        return None

    def partial(self, logit_NK: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the largest logit, and the sum of the exponentials of the differences from it."""
        # Finite even where a block holds no other class: -inf - -inf is NaN.
        top_N = logit_NK.amax(dim=1).clamp_(min=torch.finfo(logit_NK.dtype).min)
        return top_N, logit_NK.sub_(top_N[:, None]).exp_().sum(dim=1)

    def combine(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        top_N = torch.maximum(one[0], other[0])
        return top_N, one[1] * (one[0] - top_N).exp_() + other[1] * (other[0] - top_N).exp_()

    def over_ranks(self, own: Sequence[torch.Tensor], exchange: Exchange) -> Sequence[torch.Tensor]:
        top_N = exchange.max(own[0].clone())
        return top_N, exchange.sum(own[1] * (own[0] - top_N).exp_())

    def reduce(self, total: Sequence[torch.Tensor], target_N: torch.Tensor) -> ReducedLoss:
        # The largest logit and the logarithm of the sum are kept apart: their sum would lose digits of the logarithm.
        top_N = torch.maximum(total[0], target_N)
        own_N = (target_N - top_N).exp()
        others_N = total[1] * (total[0] - top_N).exp_()
        sum_N = others_N + own_N
        loss_N = torch.log1p(others_N + (own_N - 1)) + (top_N - target_N)
        return ReducedLoss(loss_N=loss_N, target_grad_N=-others_N / sum_N, shift_N=top_N, factor_N=1 / sum_N)

    def others_grad_(self, logit_NK: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
        """Return the probabilities before division by their sum."""
        return logit_NK.sub_(shift_N[:, None]).exp_()

    def probabilities(self, logit_NC: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logit_NC, dim=1)


@dataclass(frozen=True, kw_only=True)
class BinaryReducer:
    """SphereFace2: one binary classification per class. Source: Wen et al., ICLR 2022, equation 5.

    ``(w softplus(-target) + (1 - w) sum softplus(other)) / scale``, logits with a learnt bias. See :class:`Reducer`.

    Attributes:
        positive_weight: w, the weight of the target class (lambda in the paper).
        scale: r in the paper.
        start: Logits of target and others at right angles, without bias, where training starts.
    """

    positive_weight: float
    scale: float
    start: tuple[float, float]

    def initial_bias(self, classes: int) -> float | None:
        """Return the bias for which the gradients of the target and of the other classes balance at right angles."""
        if classes == 1 or self.positive_weight == 1:
            return -self.start[0]  # no other class contributes
        ratio = self.positive_weight / ((1 - self.positive_weight) * (classes - 1))
        # Solves ratio * sigmoid(-(target + b)) = sigmoid(other + b), quadratic in exp(-b), without cancellation.
        target, other = self.start
        root = math.sqrt((1 - ratio) ** 2 + 4 * ratio * math.exp(target - other))
        if ratio > 1:
            return math.log(ratio - 1 + root) - target - math.log(2)
        return math.log(2 * ratio) - other - math.log(1 - ratio + root)

    def partial(self, logit_NK: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the sum of the losses of the other classes."""
        return (logsigmoid(logit_NK.neg_()).sum(dim=1).neg_(),)  # softplus loses digits from 20 on

    def combine(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return (one[0] + other[0],)

    def over_ranks(self, own: Sequence[torch.Tensor], exchange: Exchange) -> Sequence[torch.Tensor]:
        return (exchange.sum(own[0].clone()),)

    def reduce(self, total: Sequence[torch.Tensor], target_N: torch.Tensor) -> ReducedLoss:
        positive, negative = self.positive_weight / self.scale, (1 - self.positive_weight) / self.scale
        return ReducedLoss(
            loss_N=negative * total[0] - positive * logsigmoid(target_N),
            target_grad_N=-positive * torch.sigmoid(-target_N),
            shift_N=target_N,
            factor_N=torch.full_like(target_N, negative),
        )

    def others_grad_(self, logit_NK: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
        return logit_NK.sigmoid_()

    def probabilities(self, logit_NC: torch.Tensor) -> torch.Tensor:
        """Return the probability of each binary classification, divided by the sum over the classes."""
        # As logarithms, because far from all centres every sigmoid underflows and the sum would be 0.
        return torch.softmax(logsigmoid(logit_NC), dim=1)
