"""DeepSpeed as an engine: ZeRO shares moments, gradients and weights out among the ranks.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020.

The optimiser, its learning rate and the rule of clipping are those of every other engine. Checkpoints hold whole
tensors by parameter name, put together of the ranks' pieces, so any stage and any number of ranks goes on from any
other's: there is nothing to convert.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm, ensure_process_group
from hsadml_dist.engine.base import (
    BackwardResult,
    BaseEngine,
    BufferSnapshot,
    LossFn,
    ReplicatedState,
    forward_embeddings,
    preserve_buffers,
)
from hsadml_dist.engine.zero_state import DeepSpeedHandles, ZeroState
from hsadml_dist.errors import ConfigError, EngineError, Fault
from hsadml_dist.models.network import Precision
from hsadml_dist.optim import set_learning_rate

Settings = Mapping[str, Any]


class DeepSpeedEngine(BaseEngine):
    """The network inside a DeepSpeed engine; the head stays outside."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Comm,
        precision: Precision,
        settings: Settings,
        bare: Callable[[], nn.Module],
        ema_decay: float | None = None,
    ) -> None:
        """Wrap the model.

        Args:
            model: The network, on its device and in fp32, contiguous; stage 3 takes it apart.
            optimizer: Over the model's parameters.
            comm: The ranks.
            precision: bf16 means autocast.
            settings: DeepSpeed's, see :mod:`hsadml_dist.config.deepspeed_options`.
            bare: Builds the same network anew, on the same device; its weights do not matter.
            ema_decay: Share that the weights' running average keeps at each step; None: no average.

        Raises:
            ConfigError: DeepSpeed is not installed.
        """
        library, stage = _library_for(comm.device), int(settings["zero_optimization"]["stage"])
        self._engine = _wrapped(library, AutocastNetwork(model, precision), optimizer, comm, settings)
        zero = DeepSpeedHandles(library=library, optimizer=self._engine.optimizer, stage=stage)
        self._shares = ZeroState(model, optimizer, comm, zero, bare, ema_decay) if stage else None
        super().__init__(model, self._shares or ReplicatedState(model, optimizer, ema_decay))
        self._optimizer, self._buffers = optimizer, BufferSnapshot(model)

    def backward(self, parts: Sequence[Batch], loss_fn: LossFn) -> BackwardResult:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        self._buffers.note()
        losses = [self._backward(part, loss_fn, last=part is parts[-1]) for part in parts]
        return BackwardResult(loss=torch.stack(losses).sum(), grad_norm=self._held.norm())

    def apply(self, lr: float) -> None:
        """See :class:`~hsadml_dist.engine.base.Engine`.

        Raises:
            EngineError: DeepSpeed did not do a step that all ranks found good; the head then has not done it either.
        """
        set_learning_rate(self._optimizer, lr)
        self._engine.step()
        if not self._engine.was_step_applied():
            raise EngineError("DeepSpeed passed over a step whose loss and gradients are finite; nothing was learnt")
        self._held.stepped()

    def discard(self) -> None:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        if self._shares is None:
            self._engine.zero_grad()
        else:
            # DeepSpeed drops what is not finite, and with it all that it has laid aside for the step.
            self._shares.spoil()
            self._engine.step()
        self._buffers.put_back()

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        with preserve_buffers(self._model):
            return self._engine(image)

    def gradients(self, part: Batch, loss_fn: LossFn) -> Iterator[tuple[str, torch.Tensor]]:
        """See :class:`~hsadml_dist.engine.base.Engine`."""
        self._buffers.note()
        self._backward(part, loss_fn, last=True)
        yield from self._held.gradients()
        self.discard()

    def _backward(self, part: Batch, loss_fn: LossFn, *, last: bool) -> torch.Tensor:
        self._engine.set_gradient_accumulation_boundary(last)
        loss = loss_fn(self._engine(part.image), part.label)
        self._engine.backward(loss, scale_wrt_gas=False)
        return loss.detach()


class AutocastNetwork(nn.Module):
    """What DeepSpeed calls: the network in the run's precision. On GPUs it would switch off an autocast around it."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.network, self._precision = network, precision

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, D)."""
        return forward_embeddings(self.network, image, self._precision)


def _library_for(device: torch.device) -> Any:
    """Import DeepSpeed for a kind of device, which it asks for once.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        import deepspeed
    except ModuleNotFoundError as fault:
        problem = f"'deepspeed' needs the package {fault.name}: pip install 'hsadml-dist[deepspeed]'"
        raise ConfigError([Fault(where="recipe", key="engine.name", problem=problem)]) from fault
    # Warnings too: of a step passed over it says less than the guard does.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Its calls of names that newer versions of PyTorch have replaced: nothing that a user could mend.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning)
    if device.type == "cpu":
        # Its own way of talking between processes of one machine would be compiled first, for half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _wrapped(library: Any, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Comm, settings: Settings) -> Any:
    ensure_process_group(comm.device)
    os.environ.setdefault("LOCAL_RANK", str(comm.device.index or 0))
    engine, *_ = library.initialize(model=model, optimizer=optimizer, config=dict(settings), dist_init_required=False)
    return engine
