"""The head: class centres with an optimiser of their own, outside every engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hsadml_dist.comm import Comm
from hsadml_dist.losses.distributed import DistributedLoss
from hsadml_dist.optim import clip_gradients, load_moments, moments, set_learning_rate


class Head:
    """Steps replicated centres: their gradients are averaged over the ranks, like the backbone's."""

    def __init__(
        self, loss: DistributedLoss, optimizer: torch.optim.Optimizer, comm: Comm, clip_norm: float | None
    ) -> None:
        self.loss = loss
        self._optimizer, self._comm, self._clip_norm = optimizer, comm, clip_norm

    def clear(self) -> None:
        """Forget gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def average(self, loss: torch.Tensor) -> torch.Tensor:
        """Average the gradients over the ranks, in place, and with the same message the loss; return its mean.

        Args:
            loss: This rank's share, a scalar of the centres' dtype.
        """
        grads = [parameter.grad for parameter in self.loss.centres.parameters() if parameter.grad is not None]
        # One message, not two: each is a point where all ranks wait for the slowest.
        flat = torch.cat([*(grad.flatten() for grad in grads), loss.reshape(1)])
        parts = self._comm.sum(flat).div_(self._comm.topology.world_size).split([*(g.numel() for g in grads), 1])
        for grad, mean in zip(grads, parts, strict=False):
            grad.copy_(mean.view_as(grad))
        return parts[-1]

    def step(self, lr: float) -> float:
        """Clip and apply the averaged gradients; return their norm before clipping."""
        norm = clip_gradients(self.loss.centres, self._clip_norm)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        return norm

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return groups ``centres`` and ``centres_moments``, whole tensors by name."""
        centres = self.loss.centres
        return {"centres": dict(centres.state_dict()), "centres_moments": moments(self._optimizer, centres)}

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave."""
        self.loss.centres.load_state_dict(dict(groups["centres"]))
        load_moments(self._optimizer, self.loss.centres, groups["centres_moments"])
