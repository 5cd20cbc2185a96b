"""One decision for all ranks: go on, or stop before the next step."""

from __future__ import annotations

import enum

from hsadml_dist.comm import Comm
from hsadml_dist.stop.signals import Notice


class Decision(enum.IntEnum):
    """What all ranks do next; the largest of the ranks' wishes wins."""

    GO = 0
    STOP = 1


class StopAgreement:
    """Votes before every step.

    The vote comes after the rank has its batch and before the step's first collective. A rank that waits for data when
    a notice comes gives the batch up and votes to stop, and none of its peers is caught in a gradient reduction that
    would never end. So all ranks stop at the same step, the next one, though only one of them was told.
    """

    def __init__(self, comm: Comm, notice: Notice) -> None:
        self._comm = comm
        self._notice = notice

    def decide(self, *, has_batch: bool) -> Decision:
        """Return the decision of all ranks; to be called by all of them."""
        wish = Decision.STOP if self._notice.received or not has_batch else Decision.GO
        return Decision(self._comm.vote(wish))
