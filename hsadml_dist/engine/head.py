"""The head: class centres and whatever else the loss trains, with an optimiser of their own, outside every engine.

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
"""The parameter that the ranks may share out; all others are alike on all of them."""


class Head:
    """Steps the centres.

    Gradients of what all ranks hold are averaged; those of a rank's own rows are whole already.
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
        """C, the classes of all ranks."""
        return self.loss.centres.classes

    @property
    def rows(self) -> range | None:
        """Class ids of the rows that this rank alone has; None: all ranks have all of them."""
        return self.loss.centres.rows if self.loss.layout == "sharded" else None

    def clear(self) -> None:
        """Forget gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def average(self, loss: torch.Tensor) -> torch.Tensor:
        """Average the gradients over the ranks, in place, and with the same message the loss; return its mean.

        Args:
            loss: This rank's share, a scalar of the centres' dtype.
        """
        loss = loss + self._add_energy().to(loss)
        sharded = self.loss.layout == "sharded"
        shared = [p for name, p in self.loss.named_parameters() if not (sharded and name == CENTRES_PARAMETER)]
        grads = [parameter.grad for parameter in shared if parameter.grad is not None]
        # One message, not two: each is a point where all ranks wait for the slowest.
        flat = torch.cat([*(grad.flatten() for grad in grads), loss.reshape(1)])
        parts = (
            self._comm.all_reduce_sum(flat).div_(self._comm.topology.world_size).split([*(g.numel() for g in grads), 1])
        )
        for grad, mean in zip(grads, parts, strict=False):
            grad.copy_(mean.view_as(grad))
        return parts[-1]

    def norm(self) -> torch.Tensor:
        """Return the norm of the whole head's averaged gradient, a scalar, the same on all ranks, which all ask."""
        squares = {name: p.grad.square().sum() for name, p in self.loss.named_parameters() if p.grad is not None}
        if self.loss.layout == "sharded" and CENTRES_PARAMETER in squares:
            squares[CENTRES_PARAMETER] = self._comm.all_reduce_sum(squares[CENTRES_PARAMETER])
        return torch.stack(list(squares.values())).sum().sqrt() if squares else torch.zeros(())

    def apply(self, lr: float, norm: torch.Tensor) -> None:
        """Clip and apply the averaged gradients, whose norm is ``norm``, and learn what else the loss has noted."""
        self.loss.end_step()
        clip_gradients(self.loss, self._clip_norm, norm)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()

    def discard(self) -> None:
        """Drop the gradients and what the loss has noted: the step was never done."""
        self.clear()
        self.loss.forget_step()

    def nonfinite_gradient(self) -> str | None:
        """Return the first parameter whose gradient on this rank is not finite, or None."""
        return nonfinite_gradient(self.loss)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return groups of tensors by name.

        ``centres`` and ``centres_moments`` hold this rank's rows; ``head`` and ``head_moments`` hold what else a loss
        has and are missing where it has nothing.
        """
        tensors, momenta = dict(self.loss.state_dict()), moments(self._optimizer, self.loss)
        groups = {
            "centres": _inside(tensors, "centres."),
            "centres_moments": _inside(momenta, "centres."),
            "head": _outside(tensors, "centres."),
            "head_moments": _outside(momenta, "centres."),
        }
        return {name: group for name, group in groups.items() if group or name.startswith("centres")}

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave."""
        tensors, momenta = (
            {f"centres.{name}": value for name, value in groups[f"centres{kind}"].items()}
            | dict(groups.get(f"head{kind}", {}))
            for kind in ("", "_moments")
        )
        self.loss.load_state_dict(tensors)
        load_moments(self._optimizer, self.loss, momenta)

    def gather_centres(self) -> torch.Tensor:
        """Return the centres of all classes (C, D), detached; to be called by all ranks."""
        weight_CD = self.loss.centres.weight.detach()
        return self._comm.all_gather_rows(weight_CD) if self.loss.layout == "sharded" else weight_CD

    def _add_energy(self) -> torch.Tensor:
        """Add the regulariser's gradient to the centres'; return its weighted value."""
        weight = self.loss.centres.weight
        if not self._energy_weight:
            return weight.new_zeros(())
        value = self._energy_weight * hyperspherical_energy(self.loss.centres, self.loss.layout, self._comm)
        value.backward()
        return value.detach()


def _inside(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _outside(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(prefix)}
