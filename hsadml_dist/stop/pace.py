"""How fast this rank is by itself, and who is slower than the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hsadml_dist.comm import Comm
from hsadml_dist.stop.own_time import ComputeTimer
from hsadml_dist.stop.stragglers import Straggler, StragglerDetector


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
