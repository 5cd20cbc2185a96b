"""Weights, gradients and moments that every rank has whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from hsadml_dist.engine.ema import ModelEma
from hsadml_dist.engine.holding import Groups
from hsadml_dist.optim import gradient_norm, load_moments, moments, nonfinite_gradient


class ReplicatedState:
    """A network's tensors as one rank holds them, by name, between two steps and between gradients and step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema_decay: float | None) -> None:
        self._model, self._optimizer = model, optimizer
        self._average = None if ema_decay is None else ModelEma(model, ema_decay)

    def norm(self) -> torch.Tensor:
        """Return the norm of the averaged gradient, a scalar."""
        return gradient_norm(self._model)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the averaged gradients, whole, with their parameters' names."""
        yield from ((name, p.grad) for name, p in self._model.named_parameters() if p.grad is not None)

    def nonfinite_gradient(self) -> str | None:
        """Return the first parameter whose gradient is not finite, or None."""
        return nonfinite_gradient(self._model)

    def nonfinite_weight(self) -> str | None:
        """Return the first weight or buffer that is not finite, or None."""
        tensors = self._model.state_dict().items()
        return next((name for name, tensor in tensors if not tensor.isfinite().all()), None)

    def stepped(self) -> None:
        """Note that a step was done."""
        if self._average is not None:
            self._average.update()

    def state(self) -> Groups:
        """Return groups of whole tensors, see :class:`~hsadml_dist.engine.protocol.Engine`."""
        groups = {"model": dict(self._model.state_dict()), "model_moments": moments(self._optimizer, self._model)}
        return groups if self._average is None else groups | self._average.state()

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave."""
        self._model.load_state_dict(dict(groups["model"]))
        load_moments(self._optimizer, self._model, groups["model_moments"])
        if self._average is not None:
            self._average.load(groups)

    def evaluation_model(self) -> nn.Module:
        """Return the bare network with the weights to be judged."""
        return self._model if self._average is None else self._average.judged()
