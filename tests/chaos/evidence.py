"""What a run's rows and words prove: pure functions from evidence to what is wrong with it, as words.

Nothing here starts a process or reads a file, so that made-up evidence can show that each check is able to fail.
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
"""Lines on stderr that only say how far the training is."""
CONSEQUENCE = re.compile(
    r"hsadml: rank \d+ (ended with exit code \d+|did not stop in time and was killed)"
    r"|hsadml: rank \d+: another rank is gone or hangs, .*"
)
"""What launcher and peers add, a line each, about the end of a rank that has said why itself."""
SPEAKER = re.compile(r"hsadml: (?:rank \d+(?=: ))?")
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What one attempt left behind.

    Attributes:
        number: From 1.
        parent: Step of the checkpoint that it went on from, 0 for none; None: it ended before it chose.
        steps: Steps of its metrics rows, in the order of the file.
        ledger: (step, keys) of its ledger rows, in the order of the file.
        events: (name, step) of its events, in the order of the file.
    """

    number: int
    parent: int | None
    steps: tuple[int, ...]
    ledger: tuple[tuple[int, tuple[str, ...]], ...] = ()
    events: tuple[tuple[str, int], ...] = ()

    @property
    def reached(self) -> int:
        """The last step that it did, or the one that it went on from."""
        return max([self.parent or 0, *self.steps])


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """What the undisturbed run came to.

    Attributes:
        digest: Of its last checkpoint.
        ledger: Keys of each step, in global order.
        samples: Keys of all training samples, an epoch's.
    """

    digest: str
    ledger: Mapping[int, tuple[str, ...]]
    samples: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault and what became of it.

    Attributes:
        kind: What was done.
        step: Steps done when it was done, by the rows; None where no training ran.
        pids: Processes that it was done to.
        exit_codes: Of the starts of the training that saw it, in their order.
        outcome: See :data:`Outcome`.
        detail: What was seen; for a lost one what is wrong.
        figures: Anything that can be counted: ranks, workers, steps lost, steps redone, seconds.
    """

    kind: str
    step: int | None
    pids: Sequence[int]
    exit_codes: Sequence[int]
    outcome: Outcome
    detail: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return asdict(self)


def lost_steps(attempts: Sequence[AttemptRecord]) -> list[int]:
    """Return, for each attempt that another one followed, how many of its steps the follower had to redo.

    An attempt that ended before it chose a checkpoint neither loses nor keeps anything.
    """
    started = [attempt for attempt in attempts if attempt.parent is not None]
    return [before.reached - (after.parent or 0) for before, after in itertools.pairwise(started)]


def allowed_loss(attempt: AttemptRecord, every: int, *, beside: bool = True) -> int:
    """Return how many steps an attempt that was killed may lose: those since its newest checkpoint that was there.

    An interval is the most. Where saves go on beside the steps, those done during one come on top; the next save waits
    for it, so two intervals are the most then.
    """
    saved = max([attempt.parent or 0, *(step for event, step in attempt.events if event == "checkpoint")])
    return min(attempt.reached - saved, 2 * every if beside else every)


def save_under_way(attempt: AttemptRecord, every: int) -> bool:
    """Whether an attempt ended before a checkpoint was there whose step it had done."""
    saved = max([attempt.parent or 0, *(step for event, step in attempt.events if event == "checkpoint")])
    return attempt.reached // every > saved // every


def redone_steps(attempts: Iterable[AttemptRecord]) -> int:
    """Return how many rows are about a step that another row is about too."""
    steps = [step for attempt in attempts for step in attempt.steps]
    return len(steps) - len(set(steps))


def ledger_problems(attempts: Sequence[AttemptRecord], calm: BaselineResult) -> list[str]:
    """Return what in the ledger of a whole run is not as in the calm run's; an empty list is right."""
    problems = [problem for attempt in attempts for problem in _attempt_problems(attempt, calm)]
    merged = {step: keys for attempt in attempts for step, keys in attempt.ledger}
    missing = sorted(calm.ledger.keys() - merged.keys())
    if missing:
        problems.append(f"the ledger lacks step {missing[0]} and {len(missing) - 1} more")
    return problems + epoch_problems([key for step in sorted(merged) for key in merged[step]], calm.samples)


def epoch_problems(keys: Sequence[str], samples: frozenset[str]) -> list[str]:
    """Return the samples that an epoch holds twice or lacks, from the keys of all steps one after the other."""
    problems = []
    size = len(samples)
    for epoch, first in enumerate(range(0, len(keys), size)):
        part = keys[first : first + size]
        doubled = sorted(key for key, count in Counter(part).items() if count > 1)
        lacking = sorted(samples - set(part)) if len(part) == size else []
        problems += [f"epoch {epoch} holds sample {key} more than once" for key in doubled[:SHOWN]]
        problems += [f"epoch {epoch} lacks sample {key}" for key in lacking[:SHOWN]]
    return problems


def _attempt_problems(attempt: AttemptRecord, calm: BaselineResult) -> Iterable[str]:
    steps = [step for step, _ in attempt.ledger]
    expected = list(range((attempt.parent or 0) + 1, (attempt.parent or 0) + 1 + len(steps)))
    if steps != expected:
        yield f"attempt {attempt.number}'s ledger holds steps {steps}, not {expected}"
    for step, keys in attempt.ledger:
        if calm.ledger.get(step) != keys:
            yield f"attempt {attempt.number} took other samples at step {step} than the calm run"


def words_problem(stderr: str) -> str | None:
    """Return why what was said on stderr is not clear, or None if it is.

    Clear is: one line about the cause. Each rank that learns of it may say one, since in a job each has a log of its
    own; but none says two, nothing is said by anybody else, and what launcher and peers add is of a known form.
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
    """Whether a traceback was written."""
    return any(line.startswith("Traceback") for line in stderr.splitlines())


def complaints(stderr: str) -> list[str]:
    """Return the lines of stderr that say more than how far the training is."""
    return [line for line in stderr.splitlines() if line.strip() and not NO_COMPLAINT.fullmatch(line)]


def clear_error_problems(exit_code: int, stderr: str, *, names: Sequence[str] = ()) -> list[str]:
    """Return why an end is not a clear error: a code of a user's error, one line without traceback, with all names."""
    problems = [] if exit_code in CLEAR_CODES else [f"exit code {exit_code}, not one of {CLEAR_CODES}"]
    words = words_problem(stderr)
    problems += [words] if words else []
    problems += [f"{name!r} is not named on stderr" for name in names if name not in stderr]
    return problems


def end_problems(exit_code: int, digest: str, attempts: Sequence[AttemptRecord], calm: BaselineResult) -> list[str]:
    """Return why a run that has been disturbed did not end as the calm one."""
    problems = [] if exit_code == 0 else [f"the last start ended with exit code {exit_code}"]
    if digest != calm.digest:
        problems.append(f"digest {digest[:12]}, not the calm run's {calm.digest[:12]}")
    return problems + ledger_problems(attempts, calm)


def snapshot_problems(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return what differs between two looks at a folder, each a digest by path."""
    changed = sorted(path for path in before.keys() & after.keys() if before[path] != after[path])
    problems = [f"{path} has changed" for path in changed]
    problems += [f"{path} is new" for path in sorted(after.keys() - before.keys())]
    return problems + [f"{path} is gone" for path in sorted(before.keys() - after.keys())]


def loss_problems(lost: int, allowed: int) -> list[str]:
    """Return a complaint if more steps were lost than allowed."""
    return [f"{lost} steps lost, at most {allowed} allowed"] if lost > allowed else []


def decide_outcome(problems: Sequence[str], good: Outcome, detail: str) -> tuple[Outcome, str]:
    """Return the outcome and its detail: ``good`` without problems, else lost."""
    return ("lost", "; ".join(problems)) if problems else (good, detail)


def as_document(seed: int, machine: Mapping[str, Any], faults: Sequence[Fault], **parts: Any) -> str:
    """Return the text of ``chaos.json``."""
    record = {"seed": seed, "machine": dict(machine), "faults": [fault.as_json() for fault in faults], **parts}
    return json.dumps(record, indent=1) + "\n"
