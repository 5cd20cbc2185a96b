"""Paths in a run folder, and the search for run folders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import UsageError

SEARCH_DEPTH = 2
"""Levels below a folder in which runs are searched: ``runs/NAME/fold-0-seed-1``."""


class _Child:
    """Attribute with the path of an entry of the folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: AttemptFolder | RunFolder, owner: type) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class AttemptFolder:
    """The folder of one attempt; no other attempt writes to it."""

    path: Path

    @property
    def number(self) -> int:
        """The attempt's number, from 1."""
        return int(self.path.name)

    record = _Child("attempt.json")  # the attempt's holder and its settings, written once
    parent = _Child("parent.json")  # name of the checkpoint that the attempt resumed from, written once
    rendezvous = _Child("rendezvous.json")  # address at which rank 0 waits for its peers
    metrics = _Child("metrics.jsonl")  # one row per step
    events = _Child("events.jsonl")  # one row per event
    ledger = _Child("ledger.jsonl")  # the sample keys of each step
    heartbeat = _Child("heartbeat")  # touched every few seconds while the attempt is alive
    tensorboard = _Child("tensorboard")  # folder of TensorBoard files
    rank_heartbeats = _Child("ranks")  # folder of the ranks' heartbeat files

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

    config = _Child("config.yaml")  # the run's complete recipe
    stop_request = _Child("STOP")  # created by a user to make the run save and stop
    save_request = _Child("SAVE")  # created by a user to request a checkpoint after the current step
    code = _Child("code")  # folder with a snapshot of the code that the run was first started with
    checkpoints = _Child("checkpoints")
    trained_on = _Child("trained_on.json")  # keyed hashes of the images and patients that the run was trained on
    trained_on_key = _Child("trained_on.key")  # the key of these hashes
    result = _Child("result.json")  # the evaluation's result
    predictions = _Child("predictions.json")  # each method's prediction for each test slice
    report = _Child("report.html")  # the evaluation report as a page
    model_card = _Child("MODEL_CARD.md")  # the weights, their intended use and their performance
    attempts_root = _Child("attempts")

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
    with contextlib.suppress(OSError):  # a folder that this user may not read must not hide the runs next to it
        if RunFolder(path).config.is_file():
            yield RunFolder(path)
        elif depth:
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
            for name in names:
                yield from discover_runs(path / name, depth - 1)
