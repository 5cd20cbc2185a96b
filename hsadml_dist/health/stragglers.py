"""Detect ranks that slow the others down.

The wall time of a step does not show them, because every rank waits for the slowest. Hooks on the network therefore
measure the rank's own compute time: the forward pass from call to return, and the backward pass from the gradient of
the output to that of the first parameter, which comes last. No collective of the loss falls into these spans, and the
engine's reductions overlap with the backward pass.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hsadml_dist.distributed.comm import Comm

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


FACTOR = 1.5
WINDOW = 20
QUIET_STEPS = 200
LEAST_SECONDS = 0.01
"""Smaller differences are the clock's and the scheduler's."""


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A slow rank.

    Attributes:
        rank: Which one.
        seconds: Median of its own seconds a step.
        median: The ranks' median of that.
    """

    rank: int
    seconds: float
    median: float

    def __str__(self) -> str:
        ratio = f"{self.seconds / self.median:.1f} times" if self.median else "unlike"
        return (
            f"rank {self.rank} holds the others up: {1e3 * self.seconds:.0f} ms of its own a step, "
            f"{ratio} the ranks' median of {1e3 * self.median:.0f} ms"
        )


class StragglerDetector:
    """Compares the ranks' own times over the last steps; a rank is named at most once in a number of steps."""

    def __init__(
        self, world_size: int, *, factor: float = FACTOR, window: int = WINDOW, quiet: int = QUIET_STEPS
    ) -> None:
        """Start without times.

        Args:
            world_size: Number of ranks.
            factor: How many times the ranks' median a rank must take to be named.
            window: Steps that are looked at.
            quiet: Steps for which a rank that was named is not named again.
        """
        self._factor, self._quiet = factor, quiet
        self._times: deque[tuple[float, ...]] = deque(maxlen=window)
        self._named = [-quiet] * world_size
        self._count = 0

    def add(self, seconds: Sequence[float]) -> list[Straggler]:
        """Take in the ranks' own seconds of one step, in rank order; return who is to be named now."""
        self._count += 1
        self._times.append(tuple(seconds))
        if len(self._times) < (self._times.maxlen or 0) or len(seconds) == 1:
            return []
        found = [slow for slow in find_slow_ranks(self._times, self._factor) if self._is_due(slow.rank)]
        for slow in found:
            self._named[slow.rank] = self._count
        return found

    def _is_due(self, rank: int) -> bool:
        return self._count - self._named[rank] >= self._quiet


def find_slow_ranks(times: Sequence[Sequence[float]] | deque[tuple[float, ...]], factor: float) -> list[Straggler]:
    """Return the ranks whose median over the steps exceeds ``factor`` times the ranks' median.

    Args:
        times: For each step the ranks' own seconds, in rank order.
        factor: More than 1.
    """
    own = [statistics.median(column) for column in zip(*times, strict=True)]
    # The lower one of two middles: of two ranks, the faster is what the slower is compared with.
    median = statistics.median_low(own)
    limit = max(factor * median, median + LEAST_SECONDS)
    return [Straggler(rank=rank, seconds=time, median=median) for rank, time in enumerate(own) if time > limit]


class StragglerMonitor:
    """This rank's own seconds a step, to be sent with its vote, and the comparison of those that came back."""

    def __init__(self, network: nn.Module, comm: Comm) -> None:
        self._own = ComputeTimer(network, comm.device)
        self._stragglers = StragglerDetector(comm.topology.world_size)

    def compute_seconds(self) -> float:
        """Return the seconds of the network's passes since the last call of this."""
        return self._own.take()

    def find_stragglers(self, seconds: Sequence[float]) -> list[Straggler]:
        """Take in the ranks' own seconds, in rank order; return who is to be named."""
        return self._stragglers.add(seconds)
