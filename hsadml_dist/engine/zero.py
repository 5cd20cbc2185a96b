"""DeepSpeed as an engine: ZeRO partitions moments, gradients and weights over the ranks.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020.

Optimizer, learning rate and clipping are the same as for the other engines. Checkpoints hold full tensors by parameter
name, gathered from the fragments of the ranks, so a run can resume with any stage, number of ranks or engine without a
conversion.
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
    BufferSnapshot,
    Engine,
    LossFn,
    ReplicatedState,
    forward_embeddings,
    preserve_buffers,
)
from hsadml_dist.engine.zero_state import DeepSpeedHandles, ZeroState
from hsadml_dist.errors import ConfigError, EngineError, Fault
from hsadml_dist.models.network import Precision
from hsadml_dist.optim import set_learning_rate


class DeepSpeedEngine(Engine):
    """The network inside a DeepSpeed engine; the head stays outside. See :class:`Engine`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Comm,
        precision: Precision,
        options: Mapping[str, Any],
        build_copy: Callable[[], nn.Module],
        ema_decay: float | None = None,
    ) -> None:
        """Wrap the model.

        Args:
            model: The network, on its device, fp32, contiguous; stage 3 replaces its parameters by fragments.
            optimizer: Over the parameters of the model.
            comm: The ranks.
            precision: bf16 means autocast.
            options: Configuration of DeepSpeed, see :mod:`hsadml_dist.config.deepspeed_options`.
            build_copy: Builds the same network again, on the same device; its weights do not matter.
            ema_decay: Decay of the running average of the weights; None means no average.

        Raises:
            ConfigError: DeepSpeed is not installed.
        """
        library, stage = _import_deepspeed(comm.device), int(options["zero_optimization"]["stage"])
        ensure_process_group(comm.device)
        os.environ.setdefault("LOCAL_RANK", str(comm.device.index or 0))
        network, config = AutocastNetwork(model, precision), dict(options)
        self._engine, *_ = library.initialize(
            model=network, optimizer=optimizer, config=config, dist_init_required=False
        )
        handles = DeepSpeedHandles(library=library, optimizer=self._engine.optimizer, stage=stage)
        self._zero = ZeroState(model, optimizer, comm, handles, build_copy, ema_decay) if stage else None
        super().__init__(model, self._zero or ReplicatedState(model, optimizer, ema_decay))
        self._optimizer, self._buffers = optimizer, BufferSnapshot(model)

    def backward(self, parts: Sequence[Batch], loss_fn: LossFn) -> BackwardResult:
        self._buffers.save()
        losses = [self._backward(part, loss_fn, last=part is parts[-1]) for part in parts]
        return BackwardResult(loss=torch.stack(losses).sum(), grad_norm=self.model_state.norm())

    def apply(self, lr: float) -> None:
        """Take the step.

        Raises:
            EngineError: DeepSpeed skipped a step with finite loss and gradients; the head has not been stepped either.
        """
        set_learning_rate(self._optimizer, lr)
        self._engine.step()
        if not self._engine.was_step_applied():
            raise EngineError("DeepSpeed skipped a step whose loss and gradients are finite; no weights were changed")
        self.model_state.after_step()

    def discard(self) -> None:
        if self._zero is None:
            self._engine.zero_grad()
        else:
            # DeepSpeed skips a step with a non-finite gradient, and drops everything accumulated for it.
            self._zero.invalidate_gradient()
            self._engine.step()
        self._buffers.restore()

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        with preserve_buffers(self.model):
            return self._engine(image)

    def gradients(self, part: Batch, loss_fn: LossFn) -> Iterator[tuple[str, torch.Tensor]]:
        self._buffers.save()
        self._backward(part, loss_fn, last=True)
        yield from self.model_state.gradients()
        self.discard()

    def _backward(self, part: Batch, loss_fn: LossFn, *, last: bool) -> torch.Tensor:
        self._engine.set_gradient_accumulation_boundary(last)
        loss = loss_fn(self._engine(part.image), part.label)
        self._engine.backward(loss, scale_wrt_gas=False)
        return loss.detach()


class AutocastNetwork(nn.Module):
    """The network with its own autocast, because on GPUs DeepSpeed disables an autocast around it."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.network, self._precision = network, precision

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return forward_embeddings(self.network, image, self._precision)


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a device type, which it reads only once.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        import deepspeed
    except ModuleNotFoundError as fault:
        problem = f"'deepspeed' needs the package {fault.name}: pip install 'hsadml-dist[deepspeed]'"
        raise ConfigError([Fault(where="recipe", key="engine.name", problem=problem)]) from fault
    # Hide its warnings too: about a skipped step it reports less than the guard.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # It calls functions deprecated in newer versions of PyTorch, which a user cannot fix.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning)
    if device.type == "cpu":
        # Its shared-memory collectives would first be compiled, for half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
