"""DistributedDataParallel as an engine, optionally with torch.compile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.base import (
    BackwardResult,
    BufferSnapshot,
    Engine,
    LossFn,
    ReplicatedState,
    forward_embeddings,
    preserve_buffers,
)
from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.models.network import Precision
from hsadml_dist.optim import clip_gradients, set_learning_rate


@dataclass(frozen=True, kw_only=True)
class DdpOptions:
    """Options of the engine.

    Attributes:
        clip_norm: Largest norm of the averaged gradient; None means no clipping.
        static_graph: Promise that the graph is the same in each step; parameters may then be unused.
        compiled: Compile the forward and backward pass with torch.compile.
        ema_decay: Decay of the running average of the weights; None means no average.
    """

    clip_norm: float | None = None
    static_graph: bool = False
    compiled: bool = False
    ema_decay: float | None = None


class DdpEngine(Engine):
    """One replica per rank, gradients averaged by all-reduce; a single rank needs no wrapper. See :class:`Engine`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Comm,
        precision: Precision,
        example: torch.Tensor,
        options: DdpOptions = DdpOptions(),
    ) -> None:
        """Wrap the model.

        Args:
            model: The network, see :func:`~hsadml_dist.models.network.prepare_model`.
            optimizer: Over the parameters of the model.
            comm: The ranks.
            precision: bf16 means autocast.
            example: An input (1, C, H, W) of zeros.
            options: Further options.

        Raises:
            ConfigError: ``compiled`` is set, but this machine cannot compile.
        """
        super().__init__(model, ReplicatedState(model, optimizer, options.ema_decay))
        self._optimizer, self._precision, self._options = optimizer, precision, options
        self._replica = _replica(model, comm, options)
        self._norm = torch.zeros(())
        self._buffers = BufferSnapshot(model)
        if comm.group is not None:
            self.warm_up_buckets(example, passes=2 if options.static_graph else 1)

    def backward(self, parts: Sequence[Batch], loss_fn: LossFn) -> BackwardResult:
        self._optimizer.zero_grad(set_to_none=True)
        self._buffers.save()
        losses = [self._backward(part, loss_fn, last=part is parts[-1]) for part in parts]
        self._norm = self.model_state.norm()
        return BackwardResult(loss=torch.stack(losses).sum(), grad_norm=self._norm)

    def apply(self, lr: float) -> None:
        clip_gradients(self.model, self._options.clip_norm, self._norm)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        self.model_state.after_step()

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._buffers.restore()

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        with preserve_buffers(self.model):
            return forward_embeddings(self.model, image, self._precision)

    def gradients(self, part: Batch, loss_fn: LossFn) -> Iterator[tuple[str, torch.Tensor]]:
        with preserve_buffers(self.model), self._eager():
            self._backward(part, loss_fn, last=True)
        yield from self.model_state.gradients()
        self._optimizer.zero_grad(set_to_none=True)

    def _backward(self, part: Batch, loss_fn: LossFn, *, last: bool) -> torch.Tensor:
        # Gradients are reduced only with the last micro-batch of a step.
        replica: Any = self._replica
        accumulate = not last and isinstance(replica, DistributedDataParallel)
        with replica.no_sync() if accumulate else contextlib.nullcontext():
            loss = loss_fn(forward_embeddings(self._replica, part.image, self._precision), part.label)
            loss.backward()
        return loss.detach()

    def _eager(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for passes that are not worth a compilation."""
        return disable_compilation() if self._options.compiled else contextlib.nullcontext()

    def warm_up_buckets(self, example: torch.Tensor, passes: int) -> None:
        """Make DDP lay out its buckets before the first real step.

        DDP rebuilds its buckets after its first backward pass, or with a static graph after its second. With three or
        more ranks the order in which an all-reduce adds depends on that layout, so without this warm-up the first step
        of a resumed run would round differently from the same step of an uninterrupted run. In addition, a static graph
        fails unless it sees a full pass before one without gradient synchronisation.
        """
        with preserve_buffers(self.model), self._eager():
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
        gradient_as_bucket_view=True,  # otherwise each gradient is stored twice
        static_graph=options.static_graph,
    )


class CompiledNetwork(nn.Module):
    """Calls a network through its compiled forward pass.

    The network itself does not change: parameter names, hooks (which run outside the compiled part), and direct calls,
    which run uncompiled.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        """Wrap the network; its first call with a new input shape compiles it, which takes tens of seconds.

        Raises:
            ConfigError: This machine cannot compile.
        """
        super().__init__()
        _check_compiler(device)
        self.network = network
        self._forward = compile_function(network.forward)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        network: Any = self.network
        network.forward = self._forward  # below the hooks of __call__, so that those are not compiled
        try:
            # One graph instead of one per DDP bucket: split graphs cannot recompute activations.
            with torch._dynamo.config.patch(optimize_ddp=False):
                return network(image)
        finally:
            del network.forward


def disable_compilation() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which compiled networks run eagerly, for passes that are not worth a compilation."""
    return torch.compiler.set_stance("force_eager")


def compile_function(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the function compiled such that a resumed run computes the same as an uninterrupted one."""
    # Same random numbers as without compilation, and no choices by timing: otherwise two starts of a run would differ.
    wanted = {"fallback_random": True, "deterministic": True}
    known = torch._inductor.list_options()
    options: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    # One graph per shape: a dynamic graph would depend on the order of the shapes, which differs in a resumed run.
    return torch.compile(function, dynamic=False, options=options)


def _check_compiler(device: torch.device) -> None:
    """Compile a small function, because missing parts (compiler, headers, Triton) show only then."""
    try:
        compile_function(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except RuntimeError as fault:
        reason = next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        problem = f"true, but this machine cannot compile ({reason}); set it to false or install a C++ compiler"
        raise ConfigError([Fault(where="recipe", key="engine.compile", problem=problem)]) from fault
