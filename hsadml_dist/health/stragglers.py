"""Detect ranks that slow the others down.

The wall time of a step does not show them, because every rank waits for the slowest. Hooks on the network therefore
measure the rank's own compute time: the forward pass from call to return, and the backward pass from the gradient of
the output to that of the first parameter, which comes last. No collective of the loss falls into these intervals, and
the engine's reductions overlap with the backward pass.
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

FACTOR = 1.5
WINDOW = 20
QUIET_STEPS = 200
MIN_DIFFERENCE_SECONDS = 0.01
"""Smaller differences are noise of the clock and the scheduler."""

Instant = float | torch.cuda.Event


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A slow rank.

    Attributes:
        seconds: Median of its compute time per step.
        median: Median of that over the ranks.
    """

    rank: int
    seconds: float
    median: float

    def __str__(self) -> str:
        ratio = f"{self.seconds / self.median:.1f} times" if self.median else "above"
        return (
            f"rank {self.rank} slows the others down: {1e3 * self.seconds:.0f} ms of compute time per step, "
            f"{ratio} the ranks' median of {1e3 * self.median:.0f} ms"
        )


class StragglerMonitor:
    """Measure this rank's compute time, which the stop agreement exchanges, and compare the times of all ranks."""

    def __init__(self, network: nn.Module, comm: Comm) -> None:
        self.compute_seconds = ComputeTimer(network, comm.device).read_and_reset
        self.find_stragglers = StragglerDetector(comm.topology.world_size).add


class ComputeTimer:
    """Measure the forward and backward passes of a network."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._intervals: list[tuple[Instant, Instant]] = []
        self._forward_start: Instant = 0.0
        self._backward_start: Instant | None = None
        network.register_forward_pre_hook(self._start_forward)
        network.register_forward_hook(self._end_forward)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._end_backward)
                break

    def read_and_reset(self) -> float:
        """Return the compute time since the last call, in seconds; the passes must have ended."""
        intervals, self._intervals = self._intervals, []
        return sum(_elapsed(*interval) for interval in intervals)

    def _now(self) -> Instant:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _start_forward(self, network: nn.Module, inputs: Any) -> None:
        self._forward_start = self._now()

    def _end_forward(self, network: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:  # not in an evaluation
            self._intervals.append((self._forward_start, self._now()))
            output.register_hook(self._start_backward)

    def _start_backward(self, gradient: torch.Tensor) -> None:
        self._backward_start = self._now()

    def _end_backward(self, parameter: torch.Tensor) -> None:
        if self._backward_start is not None:
            self._intervals.append((self._backward_start, self._now()))
            self._backward_start = None


class StragglerDetector:
    """Compare the ranks' compute times over a window of steps; a rank is reported at most once in a number of steps."""

    def __init__(
        self, world_size: int, *, factor: float = FACTOR, window: int = WINDOW, quiet: int = QUIET_STEPS
    ) -> None:
        """Create a detector with an empty window.

        Args:
            factor: Multiple of the ranks' median above which a rank is a straggler; greater than 1.
            window: Number of steps to compare.
            quiet: Number of steps for which a reported rank is not reported again.
        """
        self._factor, self._quiet = factor, quiet
        self._times: deque[tuple[float, ...]] = deque(maxlen=window)
        self._reported = [-quiet] * world_size
        self._count = 0

    def add(self, seconds: Sequence[float]) -> list[Straggler]:
        """Add the ranks' compute times of one step, in rank order, and return the stragglers to report now."""
        self._count += 1
        self._times.append(tuple(seconds))
        if len(self._times) < (self._times.maxlen or 0) or len(seconds) == 1:
            return []
        slow_ranks = find_slow_ranks(self._times, self._factor)
        found = [slow for slow in slow_ranks if self._count - self._reported[slow.rank] >= self._quiet]
        for slow in found:
            self._reported[slow.rank] = self._count
        return found


def find_slow_ranks(times: Sequence[Sequence[float]] | deque[tuple[float, ...]], factor: float) -> list[Straggler]:
    """Return the ranks whose median over the steps exceeds ``factor`` times the ranks' median.

    Args:
        times: For each step, the ranks' compute times in rank order.
        factor: Greater than 1.
    """
    own = [statistics.median(column) for column in zip(*times, strict=True)]
    # The lower of two middle values: with two ranks, the slower one is compared with the faster one.
    median = statistics.median_low(own)
    limit = max(factor * median, median + MIN_DIFFERENCE_SECONDS)
    return [Straggler(rank=rank, seconds=time, median=median) for rank, time in enumerate(own) if time > limit]


def _elapsed(start: Instant, end: Instant) -> float:
    if isinstance(start, torch.cuda.Event):
        end.synchronize()  # type: ignore[union-attr]  # both are events
        return start.elapsed_time(end) / 1e3  # type: ignore[arg-type]
    return end - start  # type: ignore[operator]  # both are numbers
