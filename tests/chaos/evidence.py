"""Evaluate the evidence of a run: pure functions from its rows and output to a list of problems.

Nothing here starts a process or reads a file, so that tests with artificial evidence can show that each check can fail.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
Outcome = Literal["survived", "clear_error", "lost"]

CLEAR_CODES = (1, 2, 70, 75)
NO_COMPLAINT = re.compile(r"step \d+/\d+  loss .*")
"""Lines on stderr that only show the progress."""
CONSEQUENCE = re.compile(
    r"hsadml: rank \d+ (ended with exit code \d+|did not stop in time and was killed)"
    r"|hsadml: rank \d+: another rank is gone or hangs, .*"
)
"""Lines that launcher and peers add about the end of a rank that has reported the cause itself."""
SPEAKER = re.compile(r"hsadml: (?:rank \d+(?=: ))?")
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """The record of one attempt.

    Attributes:
        number: From 1.
        parent: Step of the checkpoint it resumed from, 0 for a start from scratch; None if it ended before that.
        steps: Steps of its metrics rows, in file order.
        ledger: (step, keys) of its ledger rows, in file order.
        events: (name, step) of its events, in file order.
    """

    number: int
    parent: int | None
    steps: tuple[int, ...]
    ledger: tuple[tuple[int, tuple[str, ...]], ...] = ()
    events: tuple[tuple[str, int], ...] = ()

    @property
    def reached(self) -> int:
        """The last completed step, or the one it resumed from."""
        return max([self.parent or 0, *self.steps])


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """The result of the undisturbed run.

    Attributes:
        digest: Digest of its last checkpoint.
        ledger: Sample keys of each step, in global order.
        samples: Keys of all training samples, which make up an epoch.
    """

    digest: str
    ledger: Mapping[int, tuple[str, ...]]
    samples: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault and its outcome.

    Attributes:
        kind: Kind of the fault.
        step: Completed steps at that moment, according to the rows; None if no training ran.
        pids: Processes that were hit.
        exit_codes: Exit codes of the affected starts, in order.
        outcome: See :data:`Outcome`.
        detail: Observations; for a lost fault the problems.
        figures: Counts: ranks, workers, lost steps, repeated steps, seconds.
    """

    kind: str
    step: int | None
    pids: Sequence[int]
    exit_codes: Sequence[int]
    outcome: Outcome
    detail: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the fault as a JSON object."""
        return asdict(self)


def lost_steps(attempts: Sequence[AttemptRecord]) -> list[int]:
    """Return, for each attempt with a successor, how many of its steps the successor had to repeat.

    An attempt that ended before it chose a checkpoint does not count.
    """
    started = [attempt for attempt in attempts if attempt.parent is not None]
    return [before.reached - (after.parent or 0) for before, after in itertools.pairwise(started)]


def allowed_loss(attempt: AttemptRecord, every: int, *, background: bool = True) -> int:
    """Return how many steps a killed attempt may lose: those since its newest committed checkpoint.

    These are at most one checkpoint interval; with background saves at most two, because steps continue during a save,
    and the next save waits for it.
    """
    saved = max([attempt.parent or 0, *(step for event, step in attempt.events if event == "checkpoint")])
    return min(attempt.reached - saved, 2 * every if background else every)


def save_under_way(attempt: AttemptRecord, every: int) -> bool:
    """Return whether an attempt ended during a save: it has completed a step whose checkpoint is not committed."""
    saved = max([attempt.parent or 0, *(step for event, step in attempt.events if event == "checkpoint")])
    return attempt.reached // every > saved // every


def redone_steps(attempts: Iterable[AttemptRecord]) -> int:
    """Return how many rows are of a step that has another row."""
    steps = [step for attempt in attempts for step in attempt.steps]
    return len(steps) - len(set(steps))


def ledger_problems(attempts: Sequence[AttemptRecord], baseline: BaselineResult) -> list[str]:
    """Return how the ledger of a complete run differs from the baseline's; an empty list if it does not."""
    problems = [problem for attempt in attempts for problem in _attempt_problems(attempt, baseline)]
    merged = {step: keys for attempt in attempts for step, keys in attempt.ledger}
    missing = sorted(baseline.ledger.keys() - merged.keys())
    if missing:
        problems.append(f"the ledger lacks step {missing[0]} and {len(missing) - 1} more")
    return problems + epoch_problems([key for step in sorted(merged) for key in merged[step]], baseline.samples)


def epoch_problems(keys: Sequence[str], samples: frozenset[str]) -> list[str]:
    """Return the samples that an epoch repeats or lacks, from the concatenated keys of all steps."""
    problems = []
    size = len(samples)
    for epoch, first in enumerate(range(0, len(keys), size)):
        epoch_keys = keys[first : first + size]
        repeated = sorted(key for key, count in Counter(epoch_keys).items() if count > 1)
        missing_keys = sorted(samples - set(epoch_keys)) if len(epoch_keys) == size else []
        problems += [f"epoch {epoch} repeats sample {key}" for key in repeated[:SHOWN]]
        problems += [f"epoch {epoch} lacks sample {key}" for key in missing_keys[:SHOWN]]
    return problems


def _attempt_problems(attempt: AttemptRecord, baseline: BaselineResult) -> Iterable[str]:
    steps = [step for step, _ in attempt.ledger]
    expected = list(range((attempt.parent or 0) + 1, (attempt.parent or 0) + 1 + len(steps)))
    if steps != expected:
        yield f"attempt {attempt.number}'s ledger has steps {steps}, not {expected}"
    for step, keys in attempt.ledger:
        if baseline.ledger.get(step) != keys:
            yield f"attempt {attempt.number} used other samples at step {step} than the baseline run"


def message_problem(stderr: str) -> str | None:
    """Return why stderr is not a clear error message, or None if it is.

    A clear message is one line about the cause. Each rank that detects the cause may print one, because in a job each
    has a log of its own, but not two; launcher and peers may add lines of a known form, and nothing else is printed.
    """
    if has_traceback(stderr):
        lines = stderr.splitlines()
        return f"a traceback on stderr, {len(lines)} lines, the last: {lines[-1]}"
    lines = complaints(stderr)
    causes = [line for line in lines if not CONSEQUENCE.fullmatch(line)]
    speakers = [found.group() if (found := SPEAKER.match(line)) else "" for line in causes]
    if causes and len(set(speakers)) == len(speakers) and "" not in speakers:
        return None
    return f"{len(causes)} lines about the cause on stderr, not one of each rank: " + " | ".join(lines[: 2 * SHOWN])


def has_traceback(stderr: str) -> bool:
    """Return whether stderr contains a traceback."""
    return any(line.startswith("Traceback") for line in stderr.splitlines())


def complaints(stderr: str) -> list[str]:
    """Return the lines of stderr, without progress lines."""
    return [line for line in stderr.splitlines() if line.strip() and not NO_COMPLAINT.fullmatch(line)]


def clear_error_problems(exit_code: int, stderr: str, *, names: Sequence[str] = ()) -> list[str]:
    """Return why an end is not a clear error: a documented exit code and one line with all ``names``, no traceback."""
    problems = [] if exit_code in CLEAR_CODES else [f"exit code {exit_code}, not one of {CLEAR_CODES}"]
    problem = message_problem(stderr)
    problems += [problem] if problem else []
    problems += [f"{name!r} is not named on stderr" for name in names if name not in stderr]
    return problems


def end_problems(exit_code: int, digest: str, attempts: Sequence[AttemptRecord], baseline: BaselineResult) -> list[str]:
    """Return how the end of a disturbed run differs from that of the baseline run."""
    problems = [] if exit_code == 0 else [f"the last start ended with exit code {exit_code}"]
    if digest != baseline.digest:
        problems.append(f"digest {digest[:12]}, not the baseline's {baseline.digest[:12]}")
    return problems + ledger_problems(attempts, baseline)


def snapshot_problems(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the differences between two snapshots of a folder, each a digest by path."""
    changed = sorted(path for path in before.keys() & after.keys() if before[path] != after[path])
    problems = [f"{path} has changed" for path in changed]
    problems += [f"{path} is new" for path in sorted(after.keys() - before.keys())]
    return problems + [f"{path} is gone" for path in sorted(before.keys() - after.keys())]


def loss_problems(lost: int, allowed: int) -> list[str]:
    """Return a problem if more steps were lost than allowed."""
    return [f"{lost} steps lost, at most {allowed} allowed"] if lost > allowed else []


def decide_outcome(problems: Sequence[str], good: Outcome, detail: str) -> tuple[Outcome, str]:
    """Return the outcome and its detail: ``good`` without problems, otherwise lost."""
    return ("lost", "; ".join(problems)) if problems else (good, detail)


def as_document(seed: int, machine: Mapping[str, Any], faults: Sequence[Fault], **parts: Any) -> str:
    """Return the text of ``chaos.json``."""
    record = {"seed": seed, "machine": dict(machine), "faults": [fault.as_json() for fault in faults], **parts}
    return json.dumps(record, indent=1) + "\n"
