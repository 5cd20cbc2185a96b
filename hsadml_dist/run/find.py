"""Which run folders a name on the command line stands for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hsadml_dist.errors import UsageError
from hsadml_dist.run.folder import RunFolder

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
