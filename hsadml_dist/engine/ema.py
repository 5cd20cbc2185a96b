"""Exponential moving average (EMA) of the weights, evaluated instead of the last weights.

Averaged weights do as well as those of a training whose learning rate is decayed further. Source: Polyak and Juditsky,
SIAM J. Control Optim. 1992 (the mean of the iterates); Tarvainen and Valpola, NeurIPS 2017 (exponential weights, which
forget the start).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

EMA_GROUP = "model_ema"
"""State group of the averages, full tensors by parameter name."""

EMA_COUNT_GROUP = "model_ema_count"
"""State group of the number of updates, under the name ``updates``."""


class ExponentialMovingAverage:
    """An exponential moving average of tensors, at least fp32.

    After update t (from 0) the average is ``a = d * a + (1 - d) * w`` with ``d = min(decay, (1 + t) / (10 + t))``; the
    first update copies the weights. The random initial weights therefore have no lasting influence, however short the
    training. Source of the warm-up: TensorFlow's ``tf.train.ExponentialMovingAverage``.

    Works element by element, so full tensors and flat fragments of them give the same average up to rounding.

    Attributes:
        values: The averages, in the order of the weights; None before the first update.
        updates: Number of updates.
    """

    def __init__(self, weights: Sequence[torch.Tensor], decay: float) -> None:
        """Prepare the average without an update.

        Args:
            weights: The tensors to average; each update reads them again.
            decay: Upper bound of d, above 0 and below 1.
        """
        self._weights, self._decay = list(weights), decay
        self.values: list[torch.Tensor] | None = None
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Average in the current weights. Call it after each step that was applied, and only then."""
        if self.values is None:
            self.values = [_at_least_fp32(weight).clone() for weight in self._weights]
        else:
            share = 1.0 - min(self._decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self.values, [_at_least_fp32(weight) for weight in self._weights], share)
        self.updates += 1

    def load(self, values: Sequence[torch.Tensor] | None, updates: int) -> None:
        """Load copies of ``values``, in the memory layout of the weights, so that updates round as before."""
        self.updates = updates
        self.values = None
        if values is not None:
            layouts = [torch.empty_like(_at_least_fp32(weight)) for weight in self._weights]
            self.values = [layout.copy_(value) for layout, value in zip(layouts, values, strict=True)]


class ModelEma:
    """The average of the trained weights of a network by name; it has no copy of frozen weights and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Prepare the average; parameters that are frozen now must stay frozen."""
        self._model = model
        self._trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._average = ExponentialMovingAverage(list(self._trained.values()), decay)

    def update(self) -> None:
        self._average.update()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the groups :data:`EMA_GROUP`, empty before the first update, and :data:`EMA_COUNT_GROUP`."""
        averages = dict(zip(self._trained, self._average.values or (), strict=False))
        return {EMA_GROUP: averages, EMA_COUNT_GROUP: {"updates": torch.tensor(self._average.updates)}}

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Load the result of :meth:`state`."""
        updates = int(groups[EMA_COUNT_GROUP]["updates"])
        values = [groups[EMA_GROUP][name] for name in self._trained] if updates else None
        self._average.load(values, updates)

    def averaged_model(self) -> nn.Module:
        """Return a network with the averaged weights, or the network itself before the first update.

        It shares memory with the averages and with the buffers and frozen weights of the network, so it is valid until
        the next update.
        """
        if self._average.values is None:
            return self._model
        return with_weights(self._model, dict(zip(self._trained, self._average.values, strict=True)))


def with_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a network with other weights and without its hooks; it shares all other tensors.

    Args:
        model: The network.
        weights: By parameter name, in any dtype; a weight with the dtype of the parameter is not copied.
    """
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, weight in weights.items():
        parameter = model.get_parameter(name)
        kept[id(parameter)] = nn.Parameter(weight.detach().to(parameter.dtype), requires_grad=False)
    for hooks in (model._forward_hooks, model._forward_pre_hooks):  # hooks belong to the training
        kept[id(hooks)] = OrderedDict()
    return copy.deepcopy(model, kept)


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
