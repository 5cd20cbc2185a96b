"""Paths in a run folder, and the search for run folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import UsageError


@dataclass(frozen=True)
class AttemptFolder:
    """One attempt's own folder; no other attempt writes there."""

    path: Path

    @property
    def number(self) -> int:
        """The attempt's number, from 1."""
        return int(self.path.name)

    @property
    def record(self) -> Path:
        """Who started it, where and with what: written once."""
        return self.path / "attempt.json"

    @property
    def parent(self) -> Path:
        """The checkpoint it went on from: written once."""
        return self.path / "parent.json"

    @property
    def rendezvous(self) -> Path:
        """Where rank 0 waits for its peers."""
        return self.path / "rendezvous.json"

    @property
    def metrics(self) -> Path:
        """One row a step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One row for each thing that happened."""
        return self.path / "events.jsonl"

    @property
    def ledger(self) -> Path:
        """Each step's sample keys."""
        return self.path / "ledger.jsonl"

    @property
    def heartbeat(self) -> Path:
        """Touched while the attempt lives."""
        return self.path / "heartbeat"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def rank_heartbeats(self) -> Path:
        """Folder of the ranks' signs of life."""
        return self.path / "ranks"

    def rank_heartbeat(self, rank: int) -> Path:
        """Return a rank's sign of life: where it is, written anew about once a second."""
        return self.rank_heartbeats / f"rank-{rank:04d}"

    def log(self, rank: int) -> Path:
        """Return a rank's log file."""
        return self.path / "logs" / f"rank-{rank:04d}.log"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The recipe of the run, complete."""
        return self.path / "config.yaml"

    @property
    def stop_request(self) -> Path:
        """A file by which a user asks the run to save and stop."""
        return self.path / "STOP"

    @property
    def save_request(self) -> Path:
        """A file by which a user asks for a checkpoint after the present step."""
        return self.path / "SAVE"

    @property
    def code(self) -> Path:
        """Folder of the code that the run was first started with."""
        return self.path / "code"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        """The verdict."""
        return self.path / "result.json"

    @property
    def predictions(self) -> Path:
        """What each method says of each test slice."""
        return self.path / "predictions.json"

    @property
    def report(self) -> Path:
        """The verdict as a page."""
        return self.path / "report.html"

    @property
    def model_card(self) -> Path:
        """What the weights are, what they are for, and how well they do."""
        return self.path / "MODEL_CARD.md"

    @property
    def attempts_root(self) -> Path:
        """Folder of attempts."""
        return self.path / "attempts"

    def attempt(self, number: int) -> AttemptFolder:
        """Return the folder of an attempt, whether it exists or not."""
        return AttemptFolder(self.attempts_root / f"{number:04d}")

    def attempts(self) -> list[AttemptFolder]:
        """Return all attempts in the order of their numbers."""
        if not self.attempts_root.is_dir():
            return []
        names = sorted((name for name in os.listdir(self.attempts_root) if name.isdecimal()), key=int)
        return [AttemptFolder(self.attempts_root / name) for name in names]


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


SEARCH_DEPTH = 2
"""Levels under a folder in which its runs are looked for: ``runs/NAME/fold-0-seed-1``."""


def find_runs(named: Iterable[Path]) -> list[RunFolder]:
    """Return the run folders that are named, or that lie in the folders that are named; each once, in order.

    Raises:
        UsageError: A folder does not exist, or holds no run.
    """
    found: dict[Path, RunFolder] = {}
    for path in named:
        runs = list(discover_runs(path))
        if not runs:
            raise UsageError(f"run folder {path}: " + ("holds no run" if path.is_dir() else "does not exist"))
        found |= {run.path.absolute(): run for run in runs}
    return list(found.values())


def discover_runs(path: Path, depth: int = SEARCH_DEPTH) -> Iterator[RunFolder]:
    """Yield ``path`` itself if it is a run folder, else those at most ``depth`` levels under it, by name."""
    if _is_run(path):
        yield RunFolder(path)
    elif depth:
        for name in _folders(path):
            yield from discover_runs(path / name, depth - 1)


def _is_run(path: Path) -> bool:
    try:
        return RunFolder(path).config.is_file()
    except OSError:  # somebody else's, closed to us: no reason to hide the runs beside it
        return False


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
