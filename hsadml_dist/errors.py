"""The exceptions that a user can resolve, and the exit codes of the package's processes.

::

    HsadmlError                      exit code
    ├── ConfigError                  1    a recipe or an override is wrong; has all faults found
    ├── DataError                    1    images, tables or shards are missing, damaged or do not match
    │   └── TrainedDataError         1    an evaluation would be on slices or patients that the run was trained on
    ├── CheckpointError              1    there is no intact checkpoint to resume from, or one cannot be written
    ├── ClusterError                 1    Slurm is missing or refused the request, or a private cluster failed
    ├── NumericalError               1    a loss or gradient is NaN or Inf, with on_nonfinite: stop
    ├── RunError                     1    the run folder cannot be written, or the run makes no progress
    ├── UsageError                   2    the command line is wrong
    ├── EngineError                  70   the engine's gradients are not those of the loss: training is refused
    ├── PeerLostError                70   another rank died or hangs; a restart resumes the run
    ├── WorkerLostError              70   a loader worker died; a restart resumes the run
    └── RunLockedError               75   another live process writes this run

Any other exception is a defect of this package: exit code 70 and a traceback.
"""

from __future__ import annotations

import difflib
import enum
import errno
from collections.abc import Iterable
from dataclasses import dataclass

from hsadml_dist.addresses import redact_addresses

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a full quota."""


class ExitCode(enum.IntEnum):
    """Exit codes of the processes of this package."""

    SUCCESS = 0
    USER_ERROR = 1
    USAGE_ERROR = 2
    INTERNAL_ERROR = 70
    RUN_LOCKED = 75
    STOPPED = 85


class HsadmlError(Exception):
    """Base of all errors that a user can resolve; the message is one clear line without the keys of addresses."""

    exit_code: ExitCode = ExitCode.USER_ERROR

    def __str__(self) -> str:
        return redact_addresses(super().__str__())


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a recipe.

    Attributes:
        where: Where the value is written, for instance ``recipe.yaml:12`` or ``command line``.
        key: Dotted name of the setting.
        problem: The value, the rule, what is allowed and the closest spelling.
    """

    where: str
    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.problem}"


class ConfigError(HsadmlError):
    """A recipe is wrong; ``faults`` has all faults found."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class DataError(HsadmlError):
    """Images, tables or shards are missing, damaged or do not match."""


class TrainedDataError(DataError):
    """An evaluation would be on slices or patients that the run was trained on."""


class CheckpointError(HsadmlError):
    """There is no intact checkpoint to resume from, or one cannot be written."""


class ClusterError(HsadmlError):
    """Slurm is missing or refused the request, or a private cluster failed."""


class NumericalError(HsadmlError):
    """A loss or gradient is NaN or Inf, with ``on_nonfinite: stop``; the state is that after the previous step."""

    def __init__(self, text: str, step: int) -> None:
        self.step = step
        super().__init__(text)


class RunError(HsadmlError):
    """The run folder cannot be written, or attempt after attempt ends without a new checkpoint."""


class EngineError(HsadmlError):
    """The engine's gradients are not those of the loss, so training would mislead."""

    exit_code = ExitCode.INTERNAL_ERROR


class PeerLostError(HsadmlError):
    """Another rank of this start died or hangs, so collectives cannot complete; a restart resumes the run."""

    exit_code = ExitCode.INTERNAL_ERROR


class WorkerLostError(HsadmlError):
    """A loader worker was killed or crashed; a restart resumes the run."""

    exit_code = ExitCode.INTERNAL_ERROR


class UsageError(HsadmlError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE_ERROR


class RunLockedError(HsadmlError):
    """Another live process writes this run."""

    exit_code = ExitCode.RUN_LOCKED


def os_error_reason(error: OSError) -> str:
    """Return the reason of a system error in words; ``no space left`` for a full disk and a full quota."""
    return "no space left" if error.errno in NO_SPACE_ERRNOS else error.strerror or str(error)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest allowed spelling, or an empty string."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
