"""One decision for all ranks: go on, save after the next step, or stop before it."""

from __future__ import annotations

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import RunLockedError
from hsadml_dist.preemption.requests import RequestFiles, StepDecision
from hsadml_dist.preemption.signals import StopSignal


class StopAgreement:
    """Votes before every step.

    The vote comes after the rank has its batch and before the step's first collective. A rank that waits for data when
    a notice comes gives the batch up and votes to stop, and none of its peers is caught in a gradient reduction that
    would never end. So all ranks stop at the same step, the next one, though only one of them was told. That is why it
    is not started one step ahead and read a step later: a rank without a batch could then stop only after one more
    step, which it cannot do.

    The same message carries each rank's own seconds, in a slot that only this rank fills.

    Attributes:
        seconds: What the ranks gave at the last vote, in rank order.
    """

    def __init__(self, comm: Comm, notice: StopSignal, requests: RequestFiles | None = None) -> None:
        """Args: the ranks; this process's notices; the run folder's requests, on the one rank that reads them."""
        self._comm, self._notice, self._requests = comm, notice, requests
        self.seconds: tuple[float, ...] = (0.0,) * comm.topology.world_size

    def decide(self, step: int, *, has_batch: bool, seconds: float = 0.0) -> StepDecision:
        """Return the decision of all ranks before ``step``; to be called by all of them.

        Args:
            step: The step that would be next.
            has_batch: Whether this rank could do it.
            seconds: What this rank's last step took it, without waiting for others.

        Raises:
            RunLockedError: On all ranks: a later attempt has started.
        """
        slots = [0.0] * self._comm.topology.world_size
        slots[self._comm.topology.rank] = seconds
        code, *given = self._comm.all_reduce_max([float(self._wish(step, has_batch)), *slots])
        self.seconds = tuple(given)
        decision = StepDecision(int(code))
        if decision is StepDecision.SUPERSEDED:
            raise RunLockedError("a later attempt of this run has started; this one writes nothing more")
        return decision

    def mark_saved(self, step: int) -> None:
        """Know that the state after ``step`` is saved: requests that ask for no more than that are done with."""
        if self._requests is not None:
            self._requests.fulfil(step)

    @property
    def stop_reason(self) -> str | None:
        """What told this rank to stop, in words, or None."""
        return self._notice.reason or (None if self._requests is None else self._requests.stop_reason)

    def _wish(self, step: int, has_batch: bool) -> StepDecision:
        asked = StepDecision.CONTINUE if self._requests is None else self._requests.wish(step)
        own = StepDecision.STOP if self._notice.is_set or not has_batch else StepDecision.CONTINUE
        return max(asked, own)
