"""What an engine does, whichever library stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from hsadml_dist.data.loader import Batch

LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps embeddings (B, D) and labels (B,) to this rank's share of the loss, a scalar."""


@dataclass(frozen=True, kw_only=True)
class BackwardResult:
    """What a step's gradients came to.

    Attributes:
        loss: This rank's share of the loss, a detached scalar on the training device.
        grad_norm: Norm of the backbone's averaged gradient before clipping, a scalar, alike on all ranks; not finite
            if any part of the gradient is not.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor


class Engine(Protocol):
    """Trains the backbone; gradients are averaged over the ranks.

    A step is one :meth:`backward`, and then either :meth:`apply` or :meth:`discard`, the same on all ranks.
    """

    @property
    def model(self) -> nn.Module:
        """The network that is trained: for its hooks and its mode; its weights may be elsewhere."""
        ...

    def backward(self, parts: Sequence[Batch], loss_fn: LossFn) -> BackwardResult:
        """Compute a step's averaged gradients over the parts of a rank's batch; their losses add up.

        Weights and moments stay as they are; buffers may move.
        """
        ...

    def apply(self, lr: float) -> None:
        """Clip the gradients that :meth:`backward` found and do the optimiser's step with them."""
        ...

    def discard(self) -> None:
        """Drop those gradients and put the buffers back: the step was never done."""
        ...

    def nonfinite_gradient(self) -> str | None:
        """Return the first parameter whose averaged gradient, or this rank's part of it, is not finite, or None.

        Asked by all ranks, between :meth:`backward` and :meth:`discard`.
        """
        ...

    def nonfinite_weight(self) -> str | None:
        """Return the first weight or buffer that is not finite in what this rank holds, or None."""
        ...

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's embeddings (B, D); buffers stay as they are. Asked by all ranks."""
        ...

    def evaluation_model(self) -> nn.Module:
        """Return the bare network, whole, with the weights to be judged; valid until the next step.

        The averaged weights, where there is an average. Asked by all ranks.
        """
        ...

    def gradients(self, part: Batch, loss_fn: LossFn) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the averaged gradients of a step, whole, with their parameters' names; the step is never done.

        One at a time, valid until the next. To be gone through to the end, by all ranks; buffers stay as they are.
        """
        ...

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return groups of whole tensors by parameter name; asked by all ranks, of which rank 0 has all of it.

        They are ``model``, ``model_moments``, and with an average ``model_ema`` and ``model_ema_count``.
        """
        ...

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave, on any number of ranks."""
        ...
