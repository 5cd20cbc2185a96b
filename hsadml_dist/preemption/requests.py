"""Requests that a user makes of a running training by files in its folder: ``touch RUN/STOP``, ``touch RUN/SAVE``."""

from __future__ import annotations

import contextlib
import enum
import os
import time
from pathlib import Path

from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.run.history import StopReason

POLL_SECONDS = 0.5

FileIdentity = tuple[int, int]
"""Inode and modification time: a file that is touched again is a new request."""


class StepDecision(enum.IntEnum):
    """What all ranks do next; the largest value proposed by any rank wins.

    CONTINUE: do the step. SAVE: do the step, then save a checkpoint. STOP: do no further step. SUPERSEDED: a later
    attempt has started.
    """

    CONTINUE = 0
    SAVE = 1
    STOP = 2
    SUPERSEDED = 3


class RequestFiles:
    """Poll the run folder for requests, on rank 0: at most twice per second, with three queries to the file server.

    Each request is obeyed once: its file is removed after that, including a file from before the start of the run.
    """

    def __init__(self, run: RunFolder, attempt: AttemptFolder) -> None:
        self._files = {StepDecision.STOP: run.stop_request, StepDecision.SAVE: run.save_request}
        self._successor = run.attempt(attempt.number + 1).path
        # With the identity of the file; a checkpoint of the given step or a later one fulfils the request.
        self._accepted: dict[StepDecision, tuple[FileIdentity, int]] = {}
        self._next_poll = float("-inf")

    def poll(self, step: int) -> StepDecision:
        """Return what the files request before ``step``; each request is returned once."""
        now = time.monotonic()
        if now < self._next_poll:
            return StepDecision.CONTINUE
        self._next_poll = now + POLL_SECONDS
        if self._successor.exists():
            return StepDecision.SUPERSEDED
        return max([StepDecision.CONTINUE, *(one for one in self._files if self._accept(one, step))])

    def mark_saved(self, step: int) -> None:
        """Remove the files of the requests that a checkpoint of ``step`` fulfils."""
        for decision, (identity, fulfilled_by) in self._accepted.items():
            # A file that was touched again in the meantime is a new request and stays.
            if fulfilled_by <= step and _identity(self._files[decision]) == identity:
                with contextlib.suppress(OSError):  # the folder has become read-only; the request is not obeyed twice
                    self._files[decision].unlink()

    @property
    def stop_reason(self) -> StopReason | None:
        """STOP_FILE if a file has requested a stop."""
        return StopReason.STOP_FILE if StepDecision.STOP in self._accepted else None

    def _accept(self, decision: StepDecision, step: int) -> bool:
        """Accept the request for ``decision`` before ``step`` if there is a new one."""
        identity, known = _identity(self._files[decision]), self._accepted.get(decision)
        if identity is None or (known is not None and known[0] == identity):
            return False
        self._accepted[decision] = identity, step if decision is StepDecision.SAVE else step - 1
        return True


def _identity(path: Path) -> FileIdentity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
