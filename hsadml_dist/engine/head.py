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

    def step(self, lr: float) -> float:
        """Average, clip and apply the gradients; return their norm before clipping."""
        for parameter in self.loss.centres.parameters():
            if parameter.grad is not None:
                self._comm.sum(parameter.grad).div_(self._comm.topology.world_size)
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
