"""How long a step keeps this rank busy by itself: the wall time of a step hides it, since all ranks wait for the last.

Measured by hooks on the network: forward pass from its call to its return, backward pass from the gradient of the
network's output to that of its first parameter, which comes last. No collective of the loss lies in between, and the
engine's reductions run beside the backward pass.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

Instant = float | torch.cuda.Event


class ComputeTimer:
    """Adds up the forward and backward passes of a network, until asked for the sum."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Instant, Instant]] = []
        self._began: Instant = 0.0
        self._backward: Instant | None = None
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._last)
                break

    def take(self) -> float:
        """Return the seconds since the last call of this; the passes must be over."""
        spans, self._spans = self._spans, []
        return sum(_between(*span) for span in spans)

    def _now(self) -> Instant:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _enter(self, network: nn.Module, inputs: Any) -> None:
        self._began = self._now()

    def _leave(self, network: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:  # not in an evaluation
            self._spans.append((self._began, self._now()))
            output.register_hook(self._turn)

    def _turn(self, gradient: torch.Tensor) -> None:
        self._backward = self._now()

    def _last(self, parameter: torch.Tensor) -> None:
        if self._backward is not None:
            self._spans.append((self._backward, self._now()))
            self._backward = None


def _between(first: Instant, last: Instant) -> float:
    if isinstance(first, torch.cuda.Event):
        last.synchronize()  # type: ignore[union-attr]  # both are events
        return first.elapsed_time(last) / 1e3  # type: ignore[arg-type]
    return last - first  # type: ignore[operator]  # both are numbers
