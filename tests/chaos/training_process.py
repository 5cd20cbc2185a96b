"""Trainings as a user starts them, for faults to be done to: real processes, found by the kernel's own tables."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.checkpoint.layout import read_parents
from hsadml_dist.errors import HsadmlError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import read_jsonl
from tests.chaos.evidence import AttemptRecord

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
HSADML = (sys.executable, "-m", "hsadml_dist.launch.cli")
SECONDS = 240.0
"""Longest wait for anything: a machine may be busy, a hang is longer."""
LOOK_SECONDS = 0.005

STEPS, EVERY = 80, 8
SETTINGS = (
    "model.name=resnet_gn_tiny",
    "model.embedding_dim=16",
    "data.image_size=48",
    f"train.steps={STEPS}",
    "train.global_batch=24",
    "optim.warmup_steps=5",
    f"checkpoint.every={EVERY}",
    "evaluation.at_end=false",
    "evaluation.resamples=100",
    "run.tensorboard=false",
    "run.ledger=true",
)


class TimedOut(AssertionError):
    """Something did not happen in time; the text says what."""


def hsadml(*arguments: str | Path) -> str:
    """Run the command to its end and return what it prints."""
    return subprocess.run(
        [*HSADML, *map(str, arguments)], env=_environ(None), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    ).stdout


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What a training is started with.

    Attributes:
        run: The run folder.
        shards: Folder of shards.
        world: Number of ranks.
        workers: Loader workers of each.
        overrides: Further settings.
        switches: Folder of the switches of ``hook/sitecustomize.py``.
    """

    run: Path
    shards: Path
    world: int
    workers: int
    overrides: Sequence[str] = ()
    switches: Path | None = None

    def command(self) -> list[str]:
        """Return the command line."""
        settings = [f"data.shards={self.shards}", f"data.workers={self.workers}", *SETTINGS, *self.overrides]
        return [*HSADML, "train", "demo", *settings, "--nproc", str(self.world), "--run", str(self.run)]

    @contextlib.contextmanager
    def started(self) -> Iterator[LaunchedTraining]:
        """Start the training; whatever still runs at the end is killed."""
        said = self.run.with_name(f"{self.run.name}.said-{time.monotonic_ns()}")
        with said.with_suffix(".out").open("wb") as out, said.with_suffix(".err").open("wb") as err:
            before = len(RunFolder(self.run).attempts())
            process = subprocess.Popen(
                self.command(), env=_environ(self.switches), stdout=out, stderr=err, cwd=ROOT, start_new_session=True
            )
        start = LaunchedTraining(job=self, process=process, before=before, errors=said.with_suffix(".err"))
        try:
            yield start
        finally:
            start.end()

    def finish(self) -> tuple[int, str]:
        """Start the training and wait for its end; return the exit code and what it said on stderr."""
        with self.started() as start:
            return start.exit_code(), start.stderr

    def attempts(self) -> list[AttemptRecord]:
        """Return what all attempts left behind."""
        return [_attempt(self.run, folder.number) for folder in RunFolder(self.run).attempts()]

    def digest(self) -> str:
        """Return the digest of the newest checkpoint, or why there is none."""
        try:
            return run_digest(self.run)
        except HsadmlError as fault:
            return f"none: {fault}"


@dataclass(frozen=True, kw_only=True)
class LaunchedTraining:
    """A training under way.

    Attributes:
        job: What it was started with.
        process: The launcher.
        before: Number of attempts that there were before.
        errors: File of what is said on stderr.
    """

    job: TrainingJob
    process: subprocess.Popen[bytes]
    before: int
    errors: Path

    @property
    def stderr(self) -> str:
        """What was said on stderr so far."""
        return self.errors.read_text(errors="replace")

    def step(self) -> int:
        """Return the last step recorded by this start, 0 so far."""
        return max((row["step"] for row in read_jsonl(self._own.metrics)), default=0)

    def wait_for_step(self, step: int) -> int:
        """Return the step reached as soon as ``step`` or a later one is recorded by this start."""
        self.wait(lambda: self.step() >= step, f"step {step}")
        return self.step()

    def events(self, event: str, step: int | None = None) -> list[dict[str, Any]]:
        """Return this start's events of one kind, of one step or of all."""
        return [row for row in read_jsonl(self._own.events) if row["event"] == event and step in (None, row["step"])]

    def wait_for_event(self, event: str, step: int | None = None) -> None:
        """Return as soon as an event, of a step, is recorded by this start."""
        self.wait(lambda: bool(self.events(event, step)), event)

    def wait(self, happened: Callable[[], bool], what: str, within: float = SECONDS) -> None:
        """Return as soon as ``happened``; ``what`` names it if it does not."""
        deadline = time.monotonic() + within
        while not happened():
            if self.process.poll() is not None and not happened():
                raise TimedOut(f"ended with exit code {self.process.returncode} before {what}: {self.stderr[-400:]}")
            if time.monotonic() > deadline:
                raise TimedOut(f"{what}: not within {within:.0f} s")
            time.sleep(LOOK_SECONDS)

    def rank_pids(self) -> list[int]:
        """Return the ranks' process ids, in rank order; as soon as all of them are there."""
        world = self.job.world
        self.wait(lambda: len(self._ranks()) == world, f"{world} ranks")
        return [pid for _, pid in sorted(self._ranks().items())]

    def worker_pids(self, rank: int) -> list[int]:
        """Return the process ids of a rank's loader workers."""
        return [pid for pid in children(self.rank_pids()[rank]) if _is_worker(pid)]

    def exit_code(self, within: float = SECONDS) -> int:
        """Wait for the end and return the launcher's exit code."""
        try:
            return self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"still running after {within:.0f} s") from None

    def end(self) -> None:
        """Kill whatever still runs; the kernel takes the ranks down with their launcher."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def _own(self):
        return RunFolder(self.job.run).attempt(self.before + 1)

    def _ranks(self) -> dict[int, int]:
        found = {}
        for pid in children(self.process.pid):
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
                found.update({int(text[5:]): pid for text in variables if text.startswith("RANK=")})
        return found


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children, of all its threads."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sorted(int(child) for task in tasks for child in (task / "children").read_text().split())
    except FileNotFoundError:
        return []


def _is_worker(pid: int) -> bool:
    """Whether a rank's child is a loader worker: deaf to TERM, and unlike the rank's watcher not to HUP."""
    with contextlib.suppress(OSError):
        (ignored,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        deaf = {number for number in (signal.SIGTERM, signal.SIGHUP) if int(ignored, 16) >> (number - 1) & 1}
        return deaf == {signal.SIGTERM}
    return False


def _attempt(run: Path, number: int) -> AttemptRecord:
    folder = RunFolder(run).attempt(number)
    chosen = read_parents(RunFolder(run))
    parent = chosen.get(number)
    return AttemptRecord(
        number=number,
        parent=None if number not in chosen else parent.step if parent else 0,
        steps=tuple(row["step"] for row in read_jsonl(folder.metrics)),
        ledger=tuple((row["step"], tuple(row["keys"])) for row in read_jsonl(folder.ledger)),
        events=tuple((row["event"], row["step"]) for row in read_jsonl(folder.events)),
    )


def _environ(switches: Path | None) -> dict[str, str]:
    paths = [str(ROOT)] if switches is None else [str(HOOK), str(ROOT)]
    switched = {} if switches is None else {"HSADML_CHAOS_SWITCHES": str(switches)}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **switched}
