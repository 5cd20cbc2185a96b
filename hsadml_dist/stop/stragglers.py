"""Which rank holds the others up."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

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
