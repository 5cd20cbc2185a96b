"""The engine protocol, and the code that all engines share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from hsadml_dist.data.batch import Batch
from hsadml_dist.engine.ema import ModelEma
from hsadml_dist.models.network import Precision
from hsadml_dist.optim import gradient_norm, load_moments, moments, nonfinite_gradient

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


def forward_embeddings(network: nn.Module, image: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return the embeddings (B, D) of images (B, C, H, W[, D]); bf16 means autocast."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(image)


class BufferSnapshot:
    """A model's buffers, and what they were when they were last noted."""

    def __init__(self, model: nn.Module) -> None:
        # Their data alone: what autograd keeps of a pass counts as unchanged when they are put back.
        self._now = [buffer.data for buffer in model.buffers()]
        self._noted = [buffer.clone() for buffer in self._now]

    def note(self) -> None:
        """Remember what they are."""
        self._copy(self._now, self._noted)

    def put_back(self) -> None:
        """Make them what they were."""
        self._copy(self._noted, self._now)

    @staticmethod
    def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
        if source:  # one call: on a GPU, a call a buffer would take longer than a small net's step
            torch._foreach_copy_(target, source)


@contextlib.contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back to what they were before: nothing is learnt from what is done meanwhile."""
    buffers = BufferSnapshot(model)
    yield
    buffers.put_back()


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
        """Return groups of whole tensors, see :class:`~hsadml_dist.engine.base.Engine`."""
        ...

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put back what :meth:`state` gave, of any engine and number of ranks; all ranks have all of it."""
        ...

    def evaluation_model(self) -> nn.Module:
        """Return the bare network, whole, with the weights to be judged."""
        ...


class BaseEngine:
    """The part of an engine that does no step; see :class:`~hsadml_dist.engine.base.Engine`."""

    def __init__(self, model: nn.Module, held: ModelState) -> None:
        self._model, self._held = model, held

    @property
    def model(self) -> nn.Module:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        return self._model

    def nonfinite_gradient(self) -> str | None:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        return self._held.nonfinite_gradient()

    def nonfinite_weight(self) -> str | None:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        return self._held.nonfinite_weight()

    def evaluation_model(self) -> nn.Module:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        return self._held.evaluation_model()

    def state(self) -> Groups:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        return self._held.state()

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        self._held.load(groups)


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
        """Return groups of whole tensors, see :class:`~hsadml_dist.engine.base.Engine`."""
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
