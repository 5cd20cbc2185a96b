"""The engine interface, and the code that all engines share."""

from __future__ import annotations

import abc
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
"""Maps embeddings (B, D) and labels (B,) to the local share of the loss, a scalar."""

Groups = dict[str, dict[str, torch.Tensor]]
"""State tensors by group and name."""


@dataclass(frozen=True, kw_only=True)
class BackwardResult:
    """Result of the backward pass of a step.

    Attributes:
        loss: Local share of the loss, a detached scalar on the training device.
        grad_norm: Norm of the averaged gradient of the backbone before clipping, a scalar, equal on all ranks; not
            finite if any part of the gradient is not.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor


class ModelState(Protocol):
    """The tensors of a network as one rank holds them, full or partitioned; see :class:`Engine` for most methods.

    Collective: every rank must call the same methods, because partitioned tensors have to be gathered.
    """

    def norm(self) -> torch.Tensor:
        """Return the norm of the averaged gradient, a scalar."""

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (parameter name, averaged gradient), full tensors."""

    def after_step(self) -> None:
        """Update what follows the weights after an optimizer step."""

    def nonfinite_gradient(self) -> str | None: ...

    def nonfinite_weight(self) -> str | None: ...

    def state(self) -> Groups: ...

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None: ...

    def evaluation_model(self) -> nn.Module: ...


class Engine(abc.ABC):
    """Trains the backbone with gradients averaged over the ranks.

    A step is one :meth:`backward`, followed by either :meth:`apply` or :meth:`discard`, the same on all ranks. All
    methods are collective: every rank must call them.

    Attributes:
        model: The network that is trained, for access to hooks and mode; its weights may be partitioned.
        model_state: The tensors of the network on this rank.
    """

    def __init__(self, model: nn.Module, model_state: ModelState) -> None:
        self.model, self.model_state = model, model_state

    @abc.abstractmethod
    def backward(self, parts: Sequence[Batch], loss_fn: LossFn) -> BackwardResult:
        """Compute the averaged gradients of a step over the micro-batches of this rank; their losses are summed.

        Weights and moments do not change; buffers may.
        """

    @abc.abstractmethod
    def apply(self, lr: float) -> None:
        """Clip the gradients of :meth:`backward` and take the optimizer step."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Drop the gradients of :meth:`backward` and restore the buffers, as if the step had never started."""

    @abc.abstractmethod
    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, D); buffers do not change."""

    @abc.abstractmethod
    def gradients(self, part: Batch, loss_fn: LossFn) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (parameter name, averaged gradient), full tensors, of a step that is never applied.

        A tensor is valid until the next one. Must be iterated to the end. Buffers do not change.
        """

    def nonfinite_gradient(self) -> str | None:
        """Return the first parameter whose gradient is not finite in the local part, or None.

        Call it between :meth:`backward` and :meth:`discard`.
        """
        return self.model_state.nonfinite_gradient()

    def nonfinite_weight(self) -> str | None:
        """Return the first weight or buffer that is not finite in the local part, or None."""
        return self.model_state.nonfinite_weight()

    def evaluation_model(self) -> nn.Module:
        """Return the full network for evaluation, with averaged weights if EMA is on; valid until the next step."""
        return self.model_state.evaluation_model()

    def state(self) -> Groups:
        """Return groups of full tensors by parameter name; only rank 0 is guaranteed to get all of them.

        The groups are ``model``, ``model_moments``, and with EMA ``model_ema`` and ``model_ema_count``.
        """
        return self.model_state.state()

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Load the result of :meth:`state`, saved by any engine on any number of ranks; every rank passes all of it."""
        self.model_state.load(groups)


class ReplicatedState(ModelState):
    """Weights, gradients and moments that every rank holds in full; a :class:`ModelState`."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema_decay: float | None) -> None:
        self._model, self._optimizer = model, optimizer
        self._ema = None if ema_decay is None else ModelEma(model, ema_decay)

    def norm(self) -> torch.Tensor:
        return gradient_norm(self._model)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, p.grad) for name, p in self._model.named_parameters() if p.grad is not None)

    def nonfinite_gradient(self) -> str | None:
        return nonfinite_gradient(self._model)

    def nonfinite_weight(self) -> str | None:
        return nonfinite_tensor(self._model)

    def after_step(self) -> None:
        if self._ema is not None:
            self._ema.update()

    def state(self) -> Groups:
        groups = {"model": dict(self._model.state_dict()), "model_moments": moments(self._optimizer, self._model)}
        return groups if self._ema is None else groups | self._ema.state()

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self._model.load_state_dict(dict(groups["model"]))
        load_moments(self._optimizer, self._model, groups["model_moments"])
        if self._ema is not None:
            self._ema.load(groups)

    def evaluation_model(self) -> nn.Module:
        return self._model if self._ema is None else self._ema.averaged_model()


def forward_embeddings(network: nn.Module, image: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return the embeddings (B, D) of images (B, C, H, W[, D]); bf16 runs under autocast."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(image)


def nonfinite_tensor(module: nn.Module) -> str | None:
    """Return the name of the first tensor in the state dict of a module that is not finite, or None."""
    tensors = module.state_dict().items()
    return next((name for name, tensor in tensors if not tensor.isfinite().all()), None)


class BufferSnapshot:
    """The buffers of a model, saved and restored together."""

    def __init__(self, model: nn.Module) -> None:
        # ``.data``, so that restoring does not bump the version counters that autograd checks.
        self._buffers = [buffer.data for buffer in model.buffers()]
        self._saved = [buffer.clone() for buffer in self._buffers]

    def save(self) -> None:
        self._copy(self._buffers, self._saved)

    def restore(self) -> None:
        self._copy(self._saved, self._buffers)

    @staticmethod
    def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
        if source:  # one fused call: on a GPU, one call per buffer takes longer than a step of a small network
            torch._foreach_copy_(target, source)


@contextlib.contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of the model on exit, so that forward passes inside do not change running statistics."""
    buffers = BufferSnapshot(model)
    yield
    buffers.restore()
