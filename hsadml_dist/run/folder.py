"""Paths in a run folder, and the search for run folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.atomic import write_text
from hsadml_dist.errors import UsageError

replace_text = write_text

SEARCH_DEPTH = 2
"""Levels below a folder in which runs are searched: ``runs/NAME/fold-0-seed-1``."""


@dataclass(frozen=True)
class AttemptFolder:
    """The folder of one attempt; no other attempt writes to it."""

    path: Path

    @property
    def number(self) -> int:
        """The attempt's number, from 1."""
        return int(self.path.name)

    @property
    def record(self) -> Path:
        """File with the attempt's holder and its settings, written once."""
        return self.path / "attempt.json"

    @property
    def parent(self) -> Path:
        """File with the name of the checkpoint that the attempt resumed from, written once."""
        return self.path / "parent.json"

    @property
    def rendezvous(self) -> Path:
        """File with the address at which rank 0 waits for its peers."""
        return self.path / "rendezvous.json"

    @property
    def metrics(self) -> Path:
        """File with one row per step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """File with one row per event."""
        return self.path / "events.jsonl"

    @property
    def ledger(self) -> Path:
        """File with the sample keys of each step."""
        return self.path / "ledger.jsonl"

    @property
    def heartbeat(self) -> Path:
        """File touched every few seconds while the attempt is alive."""
        return self.path / "heartbeat"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard files."""
        return self.path / "tensorboard"

    @property
    def rank_heartbeats(self) -> Path:
        """Folder of the ranks' heartbeat files."""
        return self.path / "ranks"

    def rank_heartbeat(self, rank: int) -> Path:
        """Return the heartbeat file of a rank, rewritten about once per second with its step and stage."""
        return self.rank_heartbeats / f"rank-{rank:04d}"

    def log(self, rank: int) -> Path:
        """Return the log file of a rank."""
        return self.path / "logs" / f"rank-{rank:04d}.log"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """File with the run's complete recipe."""
        return self.path / "config.yaml"

    @property
    def stop_request(self) -> Path:
        """File that a user creates to make the run save and stop."""
        return self.path / "STOP"

    @property
    def save_request(self) -> Path:
        """File that a user creates to request a checkpoint after the current step."""
        return self.path / "SAVE"

    @property
    def code(self) -> Path:
        """Folder with a snapshot of the code that the run was first started with."""
        return self.path / "code"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        """File with the evaluation's result."""
        return self.path / "result.json"

    @property
    def predictions(self) -> Path:
        """File with each method's prediction for each test slice."""
        return self.path / "predictions.json"

    @property
    def report(self) -> Path:
        """The evaluation report as a page."""
        return self.path / "report.html"

    @property
    def model_card(self) -> Path:
        """File that describes the weights, their intended use and their performance."""
        return self.path / "MODEL_CARD.md"

    @property
    def attempts_root(self) -> Path:
        """Folder of attempts."""
        return self.path / "attempts"

    def attempt(self, number: int) -> AttemptFolder:
        """Return the folder of an attempt, whether or not it exists."""
        return AttemptFolder(self.attempts_root / f"{number:04d}")

    def attempts(self) -> list[AttemptFolder]:
        """Return all attempts, ordered by number."""
        if not self.attempts_root.is_dir():
            return []
        names = sorted((name for name in os.listdir(self.attempts_root) if name.isdecimal()), key=int)
        return [AttemptFolder(self.attempts_root / name) for name in names]


def find_runs(paths: Iterable[Path]) -> list[RunFolder]:
    """Return the run folders among ``paths`` and inside them, each once, in order.

    Raises:
        UsageError: A folder does not exist, or contains no run.
    """
    found: dict[Path, RunFolder] = {}
    for path in paths:
        runs = list(discover_runs(path))
        if not runs:
            raise UsageError(f"run folder {path}: " + ("contains no run" if path.is_dir() else "does not exist"))
        found |= {run.path.absolute(): run for run in runs}
    return list(found.values())


def discover_runs(path: Path, depth: int = SEARCH_DEPTH) -> Iterator[RunFolder]:
    """Yield ``path`` itself if it is a run folder, otherwise those at most ``depth`` levels below it, by name."""
    if _is_run(path):
        yield RunFolder(path)
    elif depth:
        for name in _subfolders(path):
            yield from discover_runs(path / name, depth - 1)


def _is_run(path: Path) -> bool:
    try:
        return RunFolder(path).config.is_file()
    except OSError:  # another user's folder that this user may not read must not hide the runs next to it
        return False


def _subfolders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
