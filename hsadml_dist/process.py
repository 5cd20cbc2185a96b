"""Process control: garbage collection at start-up, helper processes that die with their parent, and process identity.

A process id alone does not identify a process, because the system reuses it; together with the start time it does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""Signals that ask a rank to save and stop; its helper processes leave the answer to it."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
START_TIME_FIELD = 19
"""Index of the start time among the fields of ``/proc/PID/stat`` after the name."""


def pause_gc() -> None:
    """Disable garbage collection until :func:`resume_gc`.

    Imports create millions of objects and hardly any garbage: importing torch, MONAI and an optimiser takes about 4.4
    CPU seconds with Python's cyclic collector and 3.2 without it (two cores, Python 3.11, torch 2.13).
    """
    gc.disable()


def resume_gc() -> None:
    """Enable garbage collection again; objects that exist already are exempt from it for good."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def setup_helper_process(name: str | None = None, ignored: tuple[signal.Signals, ...] = STOP_SIGNALS) -> None:
    """Prepare a freshly forked helper of a rank: it ignores stop signals and is killed when its parent dies.

    Args:
        name: Name shown by ``ps``, at most 15 characters; None keeps the parent's.
        ignored: Signals to ignore.
    """
    resume_gc()
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    prctl = _prctl()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if name is not None:
        prctl(PR_SET_NAME, name.encode())


def die_with_this_process(exit_code: int) -> Callable[[], None]:
    """Return a ``preexec_fn`` that has the kernel kill the child when the calling process dies, for whatever reason.

    Args:
        exit_code: Exit code of a child whose parent has died before this took effect.
    """
    # Looked up before the fork: between fork and exec only system calls are safe.
    prctl, parent = _prctl(), os.getpid()

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(exit_code)

    return bind


def read_proc_stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` after the name, the state first; None if there is no such process."""
    # The name, the second field, may contain blanks and brackets: the rest starts after the last bracket.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def process_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it has ended or is a zombie."""
    fields = read_proc_stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return int(fields[START_TIME_FIELD])


def _prctl() -> Callable[..., int]:
    return ctypes.CDLL(None, use_errno=True).prctl


def catches_signal(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal; False if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
