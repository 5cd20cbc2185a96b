"""What processes beside a rank have in common: they obey nobody but the rank, and do not outlive it."""

from __future__ import annotations

import ctypes
import signal

from hsadml_dist.garbage import resume_gc

PR_SET_PDEATHSIG = 1


def setup_helper_process() -> None:
    """Make this fresh child deaf to the notices that end a run, mortal with its parent, and collect its own garbage."""
    resume_gc()
    for notice in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(notice, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
