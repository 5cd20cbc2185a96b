"""Stop signals: a signal to this process, or the approaching end of its job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from hsadml_dist.process import STOP_SIGNALS
from hsadml_dist.run.history import StopReason

STOP_AFTER = "HSADML_STOP_AFTER"
"""Environment variable: request a stop after this step, to try out a resume."""


class StopSignal:
    """Remembers whether a stop of this process was requested, and why; checking it costs nothing.

    Attributes:
        reason: The first reason, or None.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._deadline: float | None = None

    def install(self) -> None:
        """Install the signal handlers, before process groups exist and after any library that sets its own handlers."""
        for number in STOP_SIGNALS:
            # Nothing else: a collective, a lock or a write in a handler can deadlock with the code it interrupts.
            signal.signal(number, lambda caught, _: self.trigger(StopReason[signal.Signals(caught).name]))

    def set_deadline(self, end_time: float | None, lead_seconds: float) -> None:
        """Request a stop ``lead_seconds`` before ``end_time`` (seconds since 1970 UTC; None for no deadline)."""
        self._deadline = None if end_time is None else end_time - lead_seconds

    def trigger(self, reason: StopReason) -> None:
        """Request a stop."""
        if self.reason is None:
            self.reason = reason

    @property
    def is_set(self) -> bool:
        """True if the process should stop."""
        if self.reason is None and self._deadline is not None and time.time() >= self._deadline:
            self.trigger(StopReason.END_TIME)
        return self.reason is not None


def job_end_time(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the end time of the Slurm job in seconds since 1970 UTC, or None if Slurm does not provide it."""
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdecimal() and int(text) > 0 else None
