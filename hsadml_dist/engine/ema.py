"""A running average of weights, which is judged in their place.

Averaged weights do as well as those of a training whose learning rate had been let down further. Source: Polyak and
Juditsky, SIAM J. Control Optim. 1992 (the mean of the iterates); Tarvainen and Valpola, NeurIPS 2017 (exponential
weights, which forget the start).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

EMA_GROUP = "model_ema"
"""The state's group with the averages, whole tensors by parameter name."""

EMA_COUNT_GROUP = "model_ema_count"
"""The state's group with the number of updates, under the name ``updates``."""


class ExponentialMovingAverage:
    """An exponential moving average of tensors, in fp32 at least.

    After update t (from 0) the average is ``a = d * a + (1 - d) * w`` with ``d = min(decay, (1 + t) / (10 + t))``; the
    first update takes the weights as they are. So the weights of the start, which are drawn, have no lasting share in
    it however short the training. Source of the warm-up: TensorFlow's ``tf.train.ExponentialMovingAverage``.

    Works element by element: whole tensors and parts of them, flat or not, average alike but for rounding.

    Attributes:
        values: The averages, in the order of the weights; None before the first update.
        updates: How many updates there were.
    """

    def __init__(self, weights: Sequence[torch.Tensor], decay: float) -> None:
        """Prepare; nothing is averaged yet.

        Args:
            weights: What is averaged; they are looked at again at each update.
            decay: The largest share that the average keeps at an update, above 0 and below 1.
        """
        self._weights, self._decay = list(weights), decay
        self.values: list[torch.Tensor] | None = None
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; to be called after each step that was done, and after no other."""
        if self.values is None:
            self.values = [_at_least_fp32(weight).clone() for weight in self._weights]
        else:
            share = 1.0 - min(self._decay, (1 + self.updates) / (10 + self.updates))
            weights = [_at_least_fp32(weight) for weight in self._weights]
            torch._foreach_lerp_(self.values, weights, share)
        self.updates += 1

    def load(self, values: Sequence[torch.Tensor] | None, updates: int) -> None:
        """Put back copies of ``values``, in the weights' memory layout, so that updates round as they did before."""
        self.updates = updates
        if values is None:
            self.values = None
            return
        self.values = [
            torch.empty_like(_at_least_fp32(weight)).copy_(value)
            for weight, value in zip(self._weights, values, strict=True)
        ]


class ModelEma:
    """The average of a network's trained weights by name; what is frozen and buffers are the network's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Prepare; parameters that are frozen now count as frozen for good."""
        self._model = model
        self._trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._average = ExponentialMovingAverage(list(self._trained.values()), decay)

    def update(self) -> None:
        """See :meth:`ExponentialMovingAverage.update`."""
        self._average.update()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the groups :data:`GROUP`, empty before the first update, and :data:`COUNT`."""
        averages = dict(zip(self._trained, self._average.values or (), strict=False))
        return {EMA_GROUP: averages, EMA_COUNT_GROUP: {"updates": torch.tensor(self._average.updates)}}

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave."""
        updates = int(groups[EMA_COUNT_GROUP]["updates"])
        values = [groups[EMA_GROUP][name] for name in self._trained] if updates else None
        self._average.load(values, updates)

    def judged(self) -> nn.Module:
        """Return a network with the averages for weights, or the network itself before the first update.

        It shares their memory, that of buffers and that of frozen weights, so it holds until the next update.
        """
        if self._average.values is None:
            return self._model
        return with_weights(self._model, dict(zip(self._trained, self._average.values, strict=True)))


def with_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a network, without its hooks, with other weights; all other tensors are shared with it.

    Args:
        model: The network.
        weights: By parameter name, in any dtype; a weight of the parameter's own dtype is not copied.
    """
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, weight in weights.items():
        parameter = model.get_parameter(name)
        kept[id(parameter)] = nn.Parameter(weight.detach().to(parameter.dtype), requires_grad=False)
    for hooks in (model._forward_hooks, model._forward_pre_hooks):  # they belong to the training
        kept[id(hooks)] = OrderedDict()
    return copy.deepcopy(model, kept)


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
