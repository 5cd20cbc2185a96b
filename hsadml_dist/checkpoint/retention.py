"""Which checkpoints stay, and room for the next one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hsadml_dist.checkpoint.layout import (
    CheckpointName,
    lineage,
    list_checkpoints,
    read_parents,
    temporary_checkpoint_folder,
)
from hsadml_dist.errors import CheckpointError
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

MEBIBYTE = 2**20
SPACE_FACTOR = 1.1
"""Free space that must be there, as a multiple of the state's size."""


def prune_checkpoints(run: RunFolder, attempt: AttemptFolder, keep: int, keep_every: int | None) -> None:
    """Remove what is no longer needed: all but the newest ``keep`` and multiples of ``keep_every``.

    What is in nobody's line goes too. Never touches a file of a later attempt, nor any once there is one: it may be
    reading what this one would remove.
    """
    names = list_checkpoints(run)
    line = lineage(names, read_parents(run))
    kept = {*line[:keep], *(name for name in line if keep_every is not None and name.step % keep_every == 0)}
    for name in names:
        if name in kept or name.attempt > attempt.number:
            continue
        # Asked each time: a process may be paused between two removals for as long as a successor takes to start.
        if is_superseded(run, attempt):
            return
        _remove(run, name)


def remove_incomplete(run: RunFolder, attempt: AttemptFolder) -> None:
    """Remove what earlier attempts have begun and not committed."""
    for entry in run.checkpoints.glob(".*.tmp"):
        name = CheckpointName.parse(entry.name[1:].removesuffix(".tmp"))
        if name is not None and name.attempt < attempt.number:
            shutil.rmtree(entry, ignore_errors=True)


def require_free_space(folder: Path, size: int) -> None:
    """Refuse to begin a checkpoint of ``size`` bytes where the disk has no room for it.

    Raises:
        CheckpointError: It has not.
    """
    needed = SPACE_FACTOR * size + MEBIBYTE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {needed / MEBIBYTE:.0f} MiB and {free / MEBIBYTE:.0f} MiB are free; "
            "make room, or lower checkpoint.keep"
        )


def _remove(run: RunFolder, name: CheckpointName) -> None:
    # Renamed first: a folder that is half removed must not look like a checkpoint.
    doomed = temporary_checkpoint_folder(run, name)
    os.replace(run.checkpoints / str(name), doomed)
    shutil.rmtree(doomed, ignore_errors=True)
