"""Notices that end a run: a signal, or a job's end time that draws near."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

STOP_AFTER = "HSADML_STOP_AFTER"
"""Environment variable: request a stop after this step, to try out a resume."""


class StopSignal:
    """Remembers that this process was told to stop; asking it costs nothing.

    Attributes:
        reason: The first signal's name, ``time limit`` near the job's end, or None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._last_call: float | None = None

    def install(self) -> None:
        """Listen. To be called before process groups exist, and after any library that sets handlers of its own."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def set_deadline(self, end_time: float | None, lead_seconds: float) -> None:
        """Count as told to stop from ``lead_seconds`` before ``end_time`` (seconds since 1970 UTC, None: never) on."""
        self._last_call = None if end_time is None else end_time - lead_seconds

    def trigger(self, name: str) -> None:
        """Be told to stop, for the reason ``name``."""
        if self.reason is None:
            self.reason = name

    @property
    def is_set(self) -> bool:
        """Whether the process should stop."""
        if self.reason is None and self._last_call is not None and time.time() >= self._last_call:
            self.trigger("time limit")
        return self.reason is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing but this: a collective, a lock or a write in a handler can deadlock with what it interrupted.
        self.trigger(signal.Signals(number).name)


def job_end_time(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return when the Slurm job ends, in seconds since 1970 UTC, where Slurm says so."""
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdecimal() and int(text) > 0 else None
