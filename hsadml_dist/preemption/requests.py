"""What a user asks of a running training by files in its folder: ``touch RUN/STOP``, ``touch RUN/SAVE``."""

from __future__ import annotations

import contextlib
import enum
import os
import time
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.run.folder import AttemptFolder, RunFolder

LOOK_SECONDS = 0.5

FileIdentity = tuple[int, int]
"""Which file it is and when it was touched: a file touched again is a new request."""


class StepDecision(enum.IntEnum):
    """What all ranks do next; the largest of the ranks' wishes wins.

    SAVE: the step, then a checkpoint. STOP: no further step. SUPERSEDED: a later attempt has started.
    """

    CONTINUE = 0
    SAVE = 1
    STOP = 2
    SUPERSEDED = 3


@dataclass(frozen=True, kw_only=True)
class _Taken:
    identity: FileIdentity
    step: int
    """The checkpoint that fulfils it is of this step or a later one."""


class RequestFiles:
    """Rank 0's look into the run folder: at most two looks a second, each of three questions to the file server.

    A request is obeyed once: its file is removed when that is done, also one that was there before the run started.
    """

    def __init__(self, run: RunFolder, attempt: AttemptFolder) -> None:
        self._files = {StepDecision.STOP: run.stop_request, StepDecision.SAVE: run.save_request}
        self._successor = run.attempt(attempt.number + 1).path
        self._taken: dict[StepDecision, _Taken] = {}
        self._next_look = float("-inf")

    def wish(self, step: int) -> StepDecision:
        """Return what the files ask for before ``step``; each request is returned once."""
        now = time.monotonic()
        if now < self._next_look:
            return StepDecision.CONTINUE
        self._next_look = now + LOOK_SECONDS
        if self._successor.exists():
            return StepDecision.SUPERSEDED
        asked = [decision for decision in self._files if self._is_new(decision)]
        for decision in asked:
            fulfilled_by = step if decision is StepDecision.SAVE else step - 1
            identity = _identity(self._files[decision])
            if identity is not None:
                self._taken[decision] = _Taken(identity=identity, step=fulfilled_by)
        return max(asked, default=StepDecision.CONTINUE)

    def fulfil(self, step: int) -> None:
        """Remove the files of the requests that the state after ``step``, saved by now, fulfils."""
        for decision, taken in list(self._taken.items()):
            if taken.step > step:
                continue
            # One that was touched again meanwhile stays: it asks for something new.
            if _identity(self._files[decision]) == taken.identity:
                with contextlib.suppress(OSError):  # a folder that has become read-only; it is not obeyed twice
                    self._files[decision].unlink()

    @property
    def stop_reason(self) -> str | None:
        """What asked for a stop, in words, or None."""
        return "STOP file" if StepDecision.STOP in self._taken else None

    def _is_new(self, decision: StepDecision) -> bool:
        identity, taken = _identity(self._files[decision]), self._taken.get(decision)
        return identity is not None and (taken is None or taken.identity != identity)


def _identity(path: Path) -> FileIdentity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
