"""The head: class centres and other parameters of the loss, trained by their own optimizer outside every engine.

Legend of shapes: C classes, D embedding components.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.losses.centres import hyperspherical_energy
from hsadml_dist.losses.distributed_loss import DistributedLoss
from hsadml_dist.optim import clip_gradients, load_moments, moments, nonfinite_gradient, set_learning_rate

CENTRES_PARAMETER = "centres.weight"
"""The parameter that may be sharded; all others are equal on all ranks."""


class Head:
    """Trains the centres.

    Gradients of replicated parameters are averaged; those of sharded rows are complete already.
    """

    def __init__(
        self,
        loss: DistributedLoss,
        optimizer: torch.optim.Optimizer,
        comm: Comm,
        clip_norm: float | None,
        energy_weight: float = 0.0,
    ) -> None:
        self.loss = loss
        self._optimizer, self._comm, self._clip_norm = optimizer, comm, clip_norm
        self._energy_weight = energy_weight

    @property
    def classes(self) -> int:
        """C, the number of classes over all ranks."""
        return self.loss.centres.classes

    @property
    def rows(self) -> range | None:
        """Class ids of the rows that only this rank holds; None if all ranks hold all rows."""
        return self.loss.centres.rows if self.loss.layout == "sharded" else None

    @property
    def bias(self) -> float | None:
        """The bias of the loss on all logits; None for losses without one."""
        return None if self.loss.bias is None else float(self.loss.bias.detach())

    def zero_grad(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def average_gradients(self, loss: torch.Tensor) -> torch.Tensor:
        """Average the gradients and the loss over the ranks in one message. Collective: every rank must call it.

        Args:
            loss: Local share of the loss, a scalar with the dtype of the centres.

        Returns:
            The mean loss, a scalar. Gradients are averaged in place.
        """
        loss = loss + self._add_energy().to(loss)
        sharded = self.loss.layout == "sharded"
        shared = [p for name, p in self.loss.named_parameters() if not (sharded and name == CENTRES_PARAMETER)]
        grads = [parameter.grad for parameter in shared if parameter.grad is not None]
        # One message instead of two, because in each of them all ranks wait for the slowest.
        flat = torch.cat([*(grad.flatten() for grad in grads), loss.reshape(1)])
        mean = self._comm.all_reduce_sum(flat).div_(self._comm.topology.world_size)
        parts = mean.split([*(grad.numel() for grad in grads), 1])
        for grad, part in zip(grads, parts, strict=False):
            grad.copy_(part.view_as(grad))
        return parts[-1]

    def grad_norm(self) -> torch.Tensor:
        """Return the norm of the averaged gradient over all ranks, a scalar. Collective: every rank must call it."""
        squares = {name: p.grad.square().sum() for name, p in self.loss.named_parameters() if p.grad is not None}
        if self.loss.layout == "sharded" and CENTRES_PARAMETER in squares:
            squares[CENTRES_PARAMETER] = self._comm.all_reduce_sum(squares[CENTRES_PARAMETER])
        return torch.stack(list(squares.values())).sum().sqrt() if squares else torch.zeros(())

    def apply(self, lr: float, norm: torch.Tensor) -> None:
        """Update the statistics of the loss, clip the averaged gradients and take the optimizer step.

        Args:
            lr: Learning rate.
            norm: Result of :meth:`grad_norm`.
        """
        self.loss.end_step()
        clip_gradients(self.loss, self._clip_norm, norm)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()

    def discard(self) -> None:
        """Drop the gradients and the statistics of the step, as if it had never started."""
        self.zero_grad()
        self.loss.discard_step()

    def nonfinite_gradient(self) -> str | None:
        """Return the first parameter whose local gradient is not finite, or None."""
        return nonfinite_gradient(self.loss)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return groups of tensors by name.

        ``centres`` and ``centres_moments`` hold the local rows; ``head`` and ``head_moments`` hold the other tensors of
        the loss, and are missing if it has none.
        """
        groups: dict[str, dict[str, torch.Tensor]] = {"centres": {}, "centres_moments": {}}
        for kind, tensors in (("", self.loss.state_dict()), ("_moments", moments(self._optimizer, self.loss))):
            for name, value in tensors.items():
                group = "centres" if name.startswith("centres.") else "head"
                groups.setdefault(f"{group}{kind}", {})[name.removeprefix("centres.")] = value
        return groups

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Load the result of :meth:`state`."""
        tensors, all_moments = (
            {f"centres.{name}": value for name, value in groups[f"centres{kind}"].items()}
            | dict(groups.get(f"head{kind}", {}))
            for kind in ("", "_moments")
        )
        self.loss.load_state_dict(tensors)
        load_moments(self._optimizer, self.loss, all_moments)

    def gather_centres(self) -> torch.Tensor:
        """Return the centres of all classes (C, D), detached. Collective: every rank must call it."""
        weight_CD = self.loss.centres.weight.detach()
        return self._comm.all_gather_rows(weight_CD) if self.loss.layout == "sharded" else weight_CD

    def _add_energy(self) -> torch.Tensor:
        """Add the gradient of the energy regulariser to that of the centres; return its weighted value."""
        weight = self.loss.centres.weight
        if not self._energy_weight:
            return weight.new_zeros(())
        value = self._energy_weight * hyperspherical_energy(self.loss.centres, self.loss.layout, self._comm)
        value.backward()
        return value.detach()
