"""What engines have in common: they ask what holds the network's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import nn

Groups = dict[str, dict[str, torch.Tensor]]


class ModelState(Protocol):
    """A network's tensors as one rank holds them, between two steps and between gradients and step.

    All ranks ask, since what is shared out has to be put together.
    """

    def norm(self) -> torch.Tensor:
        """Return the norm of the averaged gradient, a scalar."""
        ...

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the averaged gradients, whole, with their parameters' names."""
        ...

    def nonfinite_gradient(self) -> str | None:
        """Return the first parameter whose gradient is not finite in what this rank holds, or None."""
        ...

    def nonfinite_weight(self) -> str | None:
        """Return the first weight or buffer that is not finite in what this rank holds, or None."""
        ...

    def stepped(self) -> None:
        """Note that a step was done."""
        ...

    def state(self) -> Groups:
        """Return groups of whole tensors, see :class:`~hsadml_dist.engine.protocol.Engine`."""
        ...

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave, of any engine and number of ranks; all ranks have all of it."""
        ...

    def evaluation_model(self) -> nn.Module:
        """Return the bare network, whole, with the weights to be judged."""
        ...


class BaseEngine:
    """The part of an engine that does no step; see :class:`~hsadml_dist.engine.protocol.Engine`."""

    def __init__(self, model: nn.Module, held: ModelState) -> None:
        self._model, self._held = model, held

    @property
    def model(self) -> nn.Module:
        """See :class:`~hsadml_dist.engine.protocol.Engine`."""
        return self._model

    def nonfinite_gradient(self) -> str | None:
        """See :class:`~hsadml_dist.engine.protocol.Engine`."""
        return self._held.nonfinite_gradient()

    def nonfinite_weight(self) -> str | None:
        """See :class:`~hsadml_dist.engine.protocol.Engine`."""
        return self._held.nonfinite_weight()

    def evaluation_model(self) -> nn.Module:
        """See :class:`~hsadml_dist.engine.protocol.Engine`."""
        return self._held.evaluation_model()

    def state(self) -> Groups:
        """See :class:`~hsadml_dist.engine.protocol.Engine`."""
        return self._held.state()

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """See :class:`~hsadml_dist.engine.protocol.Engine`."""
        self._held.load(groups)
