"""One decision of all ranks before every step: continue, save after the step, or stop."""

from __future__ import annotations

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import RunLockedError
from hsadml_dist.preemption.requests import RequestFiles, StepDecision
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.history import StopReason


class StopAgreement:
    """Reduces the ranks' proposals to one decision before every step.

    The reduction comes after the rank has its batch and before the first collective of the step. A rank that waits for
    data when a stop signal arrives gives up the batch and proposes to stop, so that none of its peers hangs in a
    gradient reduction. All ranks thus stop before the same step even if only one received the signal. This is why the
    reduction is not started one step ahead and read a step later: a rank without a batch could then stop only after one
    more step, which it cannot do.

    The same message carries each rank's compute time, in a slot that only this rank fills.

    Attributes:
        seconds: Compute times of the ranks from the last decision, in rank order.
    """

    def __init__(self, comm: Comm, stop_signal: StopSignal, requests: RequestFiles | None = None) -> None:
        """Create an agreement.

        Args:
            requests: Requests in the run folder, on the one rank that polls them.
        """
        self._comm, self._stop_signal, self._requests = comm, stop_signal, requests
        self.seconds: tuple[float, ...] = (0.0,) * comm.topology.world_size

    def decide(self, step: int, *, has_batch: bool, seconds: float = 0.0) -> StepDecision:
        """Return the decision of all ranks before ``step``. Collective: every rank must call it.

        Args:
            has_batch: True if this rank has the batch for it.
            seconds: This rank's compute time of the last step, without waits for other ranks.

        Raises:
            RunLockedError: A later attempt has started; raised on all ranks.
        """
        slots = [0.0] * self._comm.topology.world_size
        slots[self._comm.topology.rank] = seconds
        requested = StepDecision.CONTINUE if self._requests is None else self._requests.poll(step)
        own = StepDecision.STOP if self._stop_signal.is_set or not has_batch else StepDecision.CONTINUE
        code, *times = self._comm.all_reduce_max([float(max(requested, own)), *slots])
        self.seconds = tuple(times)
        decision = StepDecision(int(code))
        if decision is StepDecision.SUPERSEDED:
            raise RunLockedError("a later attempt of this run has started; this one stops writing")
        return decision

    def mark_saved(self, step: int) -> None:
        """Note that a checkpoint of ``step`` is saved, which fulfils the requests made for it."""
        if self._requests is not None:
            self._requests.mark_saved(step)

    @property
    def stop_reason(self) -> StopReason | None:
        """Why this rank proposed to stop, or None; a signal takes precedence over a file."""
        return self._stop_signal.reason or (None if self._requests is None else self._requests.stop_reason)
