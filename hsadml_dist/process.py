"""Helpers for this process and its children: garbage collection at start-up, signals, and process identity.

A process id alone does not identify a process, because the system reuses it; together with the start time it does.
"""

from __future__ import annotations

import ctypes
import gc
import signal
from pathlib import Path

START_TIME = 19
"""Place of the start time among the fields after the name."""


def read_proc_stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` after the name, from the state on; None for a process that is gone."""
    # The name, the second field, may hold blanks and brackets: the rest starts after the last bracket.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def process_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None for one that is gone or a zombie."""
    fields = read_proc_stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return int(fields[START_TIME])


def pause_gc() -> None:
    """Collect nothing until :func:`resume_gc`."""
    gc.disable()


def resume_gc() -> None:
    """Collect garbage from now on; what is there already counts as needed for good, and is not looked at again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


PR_SET_PDEATHSIG = 1


def setup_helper_process() -> None:
    """Make this fresh child deaf to the notices that end a run, mortal with its parent, and collect its own garbage."""
    resume_gc()
    for notice in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(notice, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
