"""What a check has found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARN = "warn"
    """A run works, but slower, or with less protection than it could have."""
    FAIL = "fail"
    """A run would not start, would not come back, or could be lost."""
    UNKNOWN = "unknown"
    """It could not be asked here."""


@dataclass(frozen=True, kw_only=True)
class Finding:
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
    verdict: Verdict
    found: str
    todo: str = ""


def judged(group: str, name: str, found: str, *, fail: str = "", warn: str = "") -> Finding:
    """Return a finding whose verdict is the first of ``fail``, ``warn`` that says what to do, else ``ok``."""
    verdict = Verdict.FAIL if fail else Verdict.WARN if warn else Verdict.OK
    return Finding(group=group, name=name, verdict=verdict, found=found, todo=fail or warn)


def unknown(group: str, name: str, found: str, todo: str = "") -> Finding:
    """Return a finding that nothing could be found."""
    return Finding(group=group, name=name, verdict=Verdict.UNKNOWN, found=found, todo=todo)
