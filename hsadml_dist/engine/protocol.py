"""What an engine does, whichever library stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from hsadml_dist.data.loader import Batch

Precision = Literal["fp32", "bf16", "fp64"]
LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps embeddings (B, D) and labels (B,) to this rank's share of the loss, a scalar."""

WEIGHT_DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.float32,
    "fp64": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a step.

    Attributes:
        loss: This rank's share of the loss, a detached scalar on the training device.
        grad_norm: Norm of the backbone's averaged gradient before clipping.
        applied: Whether the weights were changed; the head steps only if they were.
    """

    loss: torch.Tensor
    grad_norm: float
    applied: bool


class Engine(Protocol):
    """Trains the backbone; gradients are averaged over the ranks."""

    @property
    def model(self) -> nn.Module:
        """The bare network, for evaluation."""
        ...

    def step(self, parts: Sequence[Batch], loss_of: LossOf, lr: float) -> Outcome:
        """Do one optimiser step over the parts of a rank's batch; their losses add up."""
        ...

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Return the bare network's embeddings (B, D), differentiable; buffers stay as they are."""
        ...

    def gradients(self, part: Batch, loss_of: LossOf) -> dict[str, torch.Tensor]:
        """Return the averaged gradients of a step by parameter name, without doing it; buffers stay as they are."""
        ...

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return groups ``model`` and ``model_moments``, whole tensors by parameter name."""
        ...

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave, on any number of ranks."""
        ...
