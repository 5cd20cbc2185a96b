"""What can go wrong for a user, and the exit code that says so.

::

    HsadmlError                      exit code
    ├── ConfigError                  1    a recipe or an override is wrong; carries every fault found
    ├── DataError                    1    images, tables or shards are missing, damaged or do not fit
    ├── CheckpointError              1    nothing that verifies is left to go on from
    ├── ClusterError                 1    Slurm is absent, refused the request, or a private cluster failed
    ├── NumericalError               1    a loss or a gradient is not finite, and the recipe says to stop
    ├── RunError                     1    the run folder cannot be written, or its run gets no further
    ├── UsageError                   2    the command line itself is wrong
    ├── EngineError                  70   the engine's gradients are not those of the loss: nothing may be trained
    ├── PeerLostError                70   another rank of this start died or hangs; a restart goes on
    ├── WorkerLostError              70   a loader worker died; a restart goes on
    └── RunLockedError                 75   another live process writes this run

Anything else that escapes is a defect of this package: exit code 70 and a traceback.
"""

from __future__ import annotations

import difflib
import enum
import errno
from collections.abc import Iterable
from dataclasses import dataclass

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk or a quota is full."""


class ExitCode(enum.IntEnum):
    """What a process of this package says when it ends."""

    SUCCESS = 0
    USER_ERROR = 1
    USAGE_ERROR = 2
    INTERNAL_ERROR = 70
    RUN_LOCKED = 75
    STOPPED = 85


class HsadmlError(Exception):
    """Base of all errors that a user can repair; its text is one clear line."""

    exit_code: ExitCode = ExitCode.USER_ERROR


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with a recipe.

    Attributes:
        where: Where the value stands, for instance ``recipe.yaml:12`` or ``command line``.
        key: The setting's dotted name.
        problem: The value received, the rule, what is allowed and the nearest spelling.
    """

    where: str
    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.problem}"


class ConfigError(HsadmlError):
    """A recipe is wrong; ``faults`` holds all that was found, in one go."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class DataError(HsadmlError):
    """Images, tables or shards are missing, damaged or do not fit."""


class CheckpointError(HsadmlError):
    """No checkpoint that verifies is left to go on from, or one cannot be written."""


class ClusterError(HsadmlError):
    """Slurm is absent, refused the request, or a private cluster failed."""


class NumericalError(HsadmlError):
    """A loss or a gradient is not finite, and the recipe says to stop; the state is that after the step before."""

    def __init__(self, text: str, step: int) -> None:
        self.step = step
        super().__init__(text)


class RunError(HsadmlError):
    """The run folder cannot be written, or attempt after attempt ends without a new checkpoint."""


class EngineError(HsadmlError):
    """The engine's gradients are not those of the loss; training on would mislead."""

    exit_code = ExitCode.INTERNAL_ERROR


class PeerLostError(HsadmlError):
    """Another rank of this start died or hangs, so the ranks can do nothing more together; a restart goes on."""

    exit_code = ExitCode.INTERNAL_ERROR


class WorkerLostError(HsadmlError):
    """A process that prepares batches was killed, or died of a defect in a library; a restart goes on."""

    exit_code = ExitCode.INTERNAL_ERROR


class UsageError(HsadmlError):
    """The command line itself is wrong."""

    exit_code = ExitCode.USAGE_ERROR


class RunLockedError(HsadmlError):
    """Another live process writes this run."""

    exit_code = ExitCode.RUN_LOCKED


def os_error_reason(fault: OSError) -> str:
    """Return why the system refused, in words; a full disk and a full quota are both ``no space left``."""
    return "no space left" if fault.errno in NO_SPACE_ERRNOS else fault.strerror or str(fault)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest allowed spelling, or an empty string."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
