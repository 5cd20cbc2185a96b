"""Results of the doctor's checks, and their rendering as a text table."""

from __future__ import annotations

import enum
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby


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


MARKS = {CheckStatus.OK: "ok", CheckStatus.WARN: "warn", CheckStatus.FAIL: "FAIL", CheckStatus.UNKNOWN: "?"}
COLOURS = {CheckStatus.OK: "32", CheckStatus.WARN: "33", CheckStatus.FAIL: "1;31", CheckStatus.UNKNOWN: "2"}
MARK_WIDTH = 4
WIDEST = 120


def as_table(findings: Sequence[CheckResult], width: int, *, colour: bool = False) -> str:
    """Return the findings under the headings of their groups, and a line that counts the verdicts.

    Args:
        findings: In order; those of a group follow one another.
        width: Columns of the terminal.
        colour: Whether the verdicts are coloured.
    """
    names = max((len(one.name) for one in findings), default=0)
    lines: list[str] = []
    for group, members in groupby(findings, key=lambda one: one.group):
        lines += [group]
        for finding in members:
            lines += _lines(finding, names, min(width, WIDEST), colour)
        lines += [""]
    return "\n".join([*lines, summary(findings)])


def summary(findings: Sequence[CheckResult]) -> str:
    """Return one line that counts the verdicts."""
    counts = Counter(one.verdict for one in findings)
    names = {
        CheckStatus.FAIL: "failed",
        CheckStatus.WARN: "warning",
        CheckStatus.UNKNOWN: "unknown",
        CheckStatus.OK: "ok",
    }
    plural = "s" * (counts[CheckStatus.WARN] > 1)
    parts = [f"{counts[verdict]} {name}" for verdict, name in names.items() if counts[verdict]]
    return ", ".join(part + plural if part.endswith("warning") else part for part in parts)


def _lines(finding: CheckResult, names: int, width: int, colour: bool) -> Iterator[str]:
    mark = f"{MARKS[finding.verdict]:<{MARK_WIDTH}}"
    if colour:
        mark = f"\033[{COLOURS[finding.verdict]}m{mark}\033[0m"
    margin = 2 + MARK_WIDTH + 2 + names + 2
    room = max(width - margin, 24)
    first, *rest = textwrap.wrap(finding.found, room, break_on_hyphens=False) or [""]
    yield f"  {mark}  {finding.name:<{names}}  {first}".rstrip()
    for line in rest:
        yield " " * margin + line
    for place, line in enumerate(textwrap.wrap(finding.todo, room - 3, break_on_hyphens=False)):
        yield " " * margin + ("-> " if place == 0 else "   ") + line
