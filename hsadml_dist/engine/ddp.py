"""PyTorch's DistributedDataParallel as an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.base import (
    BackwardResult,
    BaseEngine,
    BufferSnapshot,
    LossFn,
    ReplicatedState,
    forward_embeddings,
    preserve_buffers,
)
from hsadml_dist.engine.compile import CompiledNetwork, disable_compilation
from hsadml_dist.models.network import Precision
from hsadml_dist.optim import clip_gradients, set_learning_rate


@dataclass(frozen=True, kw_only=True)
class DdpOptions:
    """What of the engine may be chosen.

    Attributes:
        static_graph: Each step has the same graph; parameters may then stay unused.
        compiled: torch.compile makes the network's passes.
        ema_decay: Share that the weights' running average keeps at each step; None: no average.
    """

    static_graph: bool = False
    compiled: bool = False
    ema_decay: float | None = None


class DdpEngine(BaseEngine):
    """One replica a rank, gradients averaged by all-reduce; a job of one rank needs no wrapper."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Comm,
        precision: Precision,
        clip_norm: float | None,
        example: torch.Tensor,
        options: DdpOptions = DdpOptions(),
    ) -> None:
        """Wrap the model.

        Args:
            model: The network, on its device and in its dtype, see :func:`placed`.
            optimizer: Over the model's parameters.
            comm: The ranks.
            precision: bf16 means autocast.
            clip_norm: Largest norm of the averaged gradient, or None.
            example: An input (1, C, H, W) of zeros.
            options: See :class:`DdpOptions`.

        Raises:
            ConfigError: To be compiled, on a machine that cannot.
        """
        super().__init__(model, ReplicatedState(model, optimizer, options.ema_decay))
        self._optimizer = optimizer
        self._precision, self._clip_norm = precision, clip_norm
        self._compiled = options.compiled
        self._replica = _replica(model, comm, options)
        self._norm = torch.zeros(())
        self._buffers = BufferSnapshot(model)
        if comm.group is not None:
            self._settle_buckets(example, 2 if options.static_graph else 1)

    def backward(self, parts: Sequence[Batch], loss_fn: LossFn) -> BackwardResult:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        self._optimizer.zero_grad(set_to_none=True)
        self._buffers.note()
        losses = [self._backward(part, loss_fn, last=part is parts[-1]) for part in parts]
        self._norm = self._held.norm()
        return BackwardResult(loss=torch.stack(losses).sum(), grad_norm=self._norm)

    def apply(self, lr: float) -> None:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        clip_gradients(self._model, self._clip_norm, self._norm)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        self._held.stepped()

    def discard(self) -> None:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        self._optimizer.zero_grad(set_to_none=True)
        self._buffers.put_back()

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        with preserve_buffers(self._model):
            return forward_embeddings(self._model, image, self._precision)

    def gradients(self, part: Batch, loss_fn: LossFn) -> Iterator[tuple[str, torch.Tensor]]:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        with preserve_buffers(self._model), self._as_written():
            self._backward(part, loss_fn, last=True)
        yield from self._held.gradients()
        self._optimizer.zero_grad(set_to_none=True)

    def _backward(self, part: Batch, loss_fn: LossFn, *, last: bool) -> torch.Tensor:
        with self._reducing(last):
            loss = loss_fn(forward_embeddings(self._replica, part.image, self._precision), part.label)
            loss.backward()
        return loss.detach()

    def _as_written(self) -> contextlib.AbstractContextManager[None]:
        """For passes that are not worth a compilation."""
        return disable_compilation() if self._compiled else contextlib.nullcontext()

    def _reducing(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel once a step, with its last part."""
        if last or not isinstance(self._replica, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._replica.no_sync()

    def _settle_buckets(self, example: torch.Tensor, passes: int) -> None:
        """Let DDP lay out its buckets before the first real step.

        It lays them out anew after its first backward pass, with a static graph after its second, and with three and
        more ranks the order in which an all-reduce adds depends on the layout: without this, a resumed run would round
        its first step differently from a run that was never stopped. A static graph also has to see a whole pass
        before one whose gradients do not travel, or it fails.
        """
        with preserve_buffers(self._model), self._as_written():
            for _ in range(passes):
                forward_embeddings(self._replica, example, self._precision).float().sum().backward()
        self._optimizer.zero_grad(set_to_none=True)


def _replica(model: nn.Module, comm: Comm, options: DdpOptions) -> nn.Module:
    network = CompiledNetwork(model, comm.device) if options.compiled else model
    if comm.group is None:
        return network
    return DistributedDataParallel(
        network,
        process_group=comm.group,
        gradient_as_bucket_view=True,  # else each gradient is held twice
        static_graph=options.static_graph,
    )
