"""Trainings as a user starts them: real processes, found through the kernel's tables, for fault injection."""

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
"""Longest wait for anything; a guard against hangs, also on a busy machine."""
POLL_SECONDS = 0.005

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
    "run.tensorboard=false",
    "run.ledger=true",
)


class TimedOut(AssertionError):
    """Something did not happen in time."""


def hsadml(*arguments: str | Path) -> str:
    """Run the command and return its standard output."""
    return subprocess.run(
        [*HSADML, *map(str, arguments)], env=_environ(None), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    ).stdout


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The command line of a training.

    Attributes:
        run: The run folder.
        shards: Folder of shards.
        world: Number of ranks.
        workers: Loader workers per rank.
        overrides: Additional settings.
        switches: Folder of switches for ``hook/sitecustomize.py``.
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
        """Start the training; processes that still run at the end of the block are killed."""
        output = self.run.with_name(f"{self.run.name}.output-{time.monotonic_ns()}")
        with output.with_suffix(".out").open("wb") as out, output.with_suffix(".err").open("wb") as err:
            before = len(RunFolder(self.run).attempts())
            process = subprocess.Popen(
                self.command(), env=_environ(self.switches), stdout=out, stderr=err, cwd=ROOT, start_new_session=True
            )
        start = LaunchedTraining(job=self, process=process, before=before, errors=output.with_suffix(".err"))
        try:
            yield start
        finally:
            start.end()

    def finish(self) -> tuple[int, str]:
        """Start the training, wait for its end, and return its exit code and stderr."""
        with self.started() as start:
            return start.exit_code(), start.stderr

    def attempts(self) -> list[AttemptRecord]:
        """Return the records of all attempts."""
        return [_attempt(self.run, folder.number) for folder in RunFolder(self.run).attempts()]

    def digest(self) -> str:
        """Return the digest of the newest checkpoint, or why there is none."""
        try:
            return run_digest(self.run)
        except HsadmlError as fault:
            return f"none: {fault}"


@dataclass(frozen=True, kw_only=True)
class LaunchedTraining:
    """A running training.

    Attributes:
        job: Its command line.
        process: The launcher.
        before: Number of attempts before it.
        errors: File with its stderr.
    """

    job: TrainingJob
    process: subprocess.Popen[bytes]
    before: int
    errors: Path

    @property
    def stderr(self) -> str:
        """The content of stderr so far."""
        return self.errors.read_text(errors="replace")

    def step(self) -> int:
        """Return the last step recorded by this start, or 0."""
        return max((row["step"] for row in read_jsonl(self._own.metrics)), default=0)

    def wait_for_step(self, step: int) -> int:
        """Wait until this start has recorded ``step`` or a later one; return the step reached."""
        self.wait(lambda: self.step() >= step, f"step {step}")
        return self.step()

    def events(self, event: str, step: int | None = None) -> list[dict[str, Any]]:
        """Return this start's events of one kind, of one step or all steps."""
        return [row for row in read_jsonl(self._own.events) if row["event"] == event and step in (None, row["step"])]

    def wait_for_event(self, event: str, step: int | None = None) -> None:
        """Wait until this start has recorded an event, of one step or any step."""
        self.wait(lambda: bool(self.events(event, step)), event)

    def wait(self, condition: Callable[[], bool], what: str, within: float = SECONDS) -> None:
        """Wait until ``condition`` holds; ``what`` names it in the error."""
        deadline = time.monotonic() + within
        while not condition():
            if self.process.poll() is not None and not condition():
                raise TimedOut(f"ended with exit code {self.process.returncode} before {what}: {self.stderr[-400:]}")
            if time.monotonic() > deadline:
                raise TimedOut(f"{what}: not within {within:.0f} s")
            time.sleep(POLL_SECONDS)

    def rank_pids(self) -> list[int]:
        """Wait until all ranks exist and return their process ids, in rank order."""
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
        """Kill the launcher if it still runs; the kernel kills the ranks with it."""
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
    """Return the process ids of the children of all threads of a process."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sorted(int(child) for task in tasks for child in (task / "children").read_text().split())
    except FileNotFoundError:
        return []


def _is_worker(pid: int) -> bool:
    """Return whether a child of a rank is a loader worker, which ignores TERM, but unlike the watchdog not HUP."""
    with contextlib.suppress(OSError):
        (ignored,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        ignores = {number for number in (signal.SIGTERM, signal.SIGHUP) if int(ignored, 16) >> (number - 1) & 1}
        return ignores == {signal.SIGTERM}
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
