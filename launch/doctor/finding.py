"""What a check has found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class CheckStatus(enum.StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARN = "warn"
    """A run works, but slower, or with less protection than it could have."""
    FAIL = "fail"
    """A run would not start, would not come back, or could be lost."""
    UNKNOWN = "unknown"
    """It could not be asked here."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One thing that was looked at.

    Attributes:
        group: Heading that it stands under.
        name: What was looked at.
        verdict: What it means for a run.
        found: What was found, with figures and units.
        todo: What to do; empty unless the verdict is ``warn`` or ``fail``, or something can be done about ``unknown``.
    """

    group: str
    name: str
    verdict: CheckStatus
    found: str
    todo: str = ""


def check_result(group: str, name: str, found: str, *, fail: str = "", warn: str = "") -> CheckResult:
    """Return a finding whose verdict is the first of ``fail``, ``warn`` that says what to do, else ``ok``."""
    verdict = CheckStatus.FAIL if fail else CheckStatus.WARN if warn else CheckStatus.OK
    return CheckResult(group=group, name=name, verdict=verdict, found=found, todo=fail or warn)


def unknown_result(group: str, name: str, found: str, todo: str = "") -> CheckResult:
    """Return a finding that nothing could be found."""
    return CheckResult(group=group, name=name, verdict=CheckStatus.UNKNOWN, found=found, todo=todo)
