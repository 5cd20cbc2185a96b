"""Check whether this machine and its cluster can run a training, in seconds instead of after a night in the queue."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class CheckStatus(enum.StrEnum):
    """Meaning of the result of a check for a run."""

    OK = "ok"
    WARN = "warn"
    """The run works, but is slower or less protected than it could be."""
    FAIL = "fail"
    """The run would not start, would not resume, or could be lost."""
    UNKNOWN = "unknown"
    """The check could not be made here."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        group: Heading under which it is listed.
        name: Subject of the check.
        verdict: Meaning of the result for a run.
        found: The result, with numbers and units.
        todo: The remedy; empty if there is none or none is needed.
    """

    group: str
    name: str
    verdict: CheckStatus
    found: str
    todo: str = ""


def check_result(group: str, name: str, found: str, *, fail: str = "", warn: str = "") -> CheckResult:
    """Return a result that failed if ``fail`` is a remedy, warns if ``warn`` is one, and is ok if both are empty."""
    status = CheckStatus.FAIL if fail else CheckStatus.WARN if warn else CheckStatus.OK
    return CheckResult(group=group, name=name, verdict=status, found=found, todo=fail or warn)


def unknown_result(group: str, name: str, found: str, todo: str = "") -> CheckResult:
    """Return the result of a check that could not be made."""
    return CheckResult(group=group, name=name, verdict=CheckStatus.UNKNOWN, found=found, todo=todo)
