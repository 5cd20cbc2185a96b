"""Save a checkpoint: write a temporary folder, force it to disk, rename it; and remove old checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hsadml_dist.atomic import force_to_disk
from hsadml_dist.checkpoint.layout import (
    COMMIT,
    LAYOUT_VERSION,
    MANIFEST,
    PROGRESS,
    CheckpointName,
    TrainingProgress,
    lineage,
    list_checkpoints,
    read_parents,
    temporary_checkpoint_folder,
)
from hsadml_dist.checkpoint.tensor_files import (
    SHARDED_GROUPS,
    FileEntry,
    TensorGroup,
    TrainingState,
    group_file_name,
    write_bytes,
    write_tensors,
)
from hsadml_dist.distributed.comm import Comm, SoloComm
from hsadml_dist.errors import CheckpointError, HsadmlError, RunLockedError, os_error_reason
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

FileEntries = dict[str, FileEntry]
"""Entries of the manifest by file name."""

MEBIBYTE = 2**20
SPACE_FACTOR = 1.1
"""Free space required for a checkpoint, as a multiple of the state's size."""


def save_checkpoint(
    run: RunFolder, attempt: AttemptFolder, state: TrainingState, comm: Comm | None = None
) -> CheckpointName:
    """Save ``state`` as this attempt's checkpoint of its step; it becomes visible only when it is complete.

    Collective: every rank must call it. Each rank writes its own rows, rank 0 everything else.

    Args:
        run: The run folder, the same on all ranks.
        state: This rank's state; it may lack what another rank writes.
        comm: The ranks; None for a single process.

    Raises:
        CheckpointError: Too little space, or the folder cannot be written; earlier checkpoints are unchanged.
        RunLockedError: A later attempt has started.
    """
    comm = comm or SoloComm()
    first, name = comm.topology.is_rank_zero, CheckpointName(state.progress.step, attempt.number)
    temporary, final = temporary_checkpoint_folder(run, name), run.checkpoints / str(name)
    own = dict(rank_files(state, first=first))
    needed = sum(comm.all_gather_json(sum(t.nbytes for group in own.values() for t in group.values())))
    try:
        run_on_all_ranks(comm, final, lambda: _begin(run, attempt, name, needed) if first else {})
        written = run_on_all_ranks(
            comm, final, lambda: {file: write_tensors(temporary / file, own[file]) for file in own}
        )
        files = {file: entry for entries in written for file, entry in entries.items()}
        run_on_all_ranks(comm, final, lambda: _commit(run, attempt, name, state.progress, files) if first else {})
    except HsadmlError:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return name


def rank_files(state: TrainingState, *, first: bool) -> Iterator[tuple[str, TensorGroup]]:
    """Yield (file, tensors) of what a rank writes: its rows of the sharded groups; on rank 0 everything else, too."""
    for group, tensors in state.groups.items():
        if state.rows is not None and group in SHARDED_GROUPS:
            if state.rows:
                yield group_file_name(group, state.rows), tensors
        elif first:
            yield group_file_name(group), tensors


def run_on_all_ranks(comm: Comm, checkpoint: Path, work: Callable[[], FileEntries]) -> list[FileEntries]:
    """Do this rank's work and return the results of all ranks, or raise on all of them the error of any rank."""
    entries: FileEntries = {}
    problem, is_locked = None, False
    try:
        entries = work()
    except HsadmlError as fault:
        problem, is_locked = str(fault), isinstance(fault, RunLockedError)
    except OSError as fault:
        where = fault.filename or checkpoint
        problem = f"{where}: checkpoint {checkpoint.name} cannot be written: {os_error_reason(fault)}"
    results = comm.all_gather_json({"entries": entries, "problem": problem, "is_locked": is_locked})
    for one in results:
        if one["problem"] is not None:
            raise (RunLockedError if one["is_locked"] else CheckpointError)(one["problem"])
    return [one["entries"] for one in results]


def prune_checkpoints(run: RunFolder, attempt: AttemptFolder, keep: int, keep_every: int | None) -> None:
    """Remove old checkpoints, except the newest ``keep``, multiples of ``keep_every``, and those of later attempts.

    Checkpoints outside the lineage are removed, too. Nothing is removed once a later attempt has started, because that
    may be loading what this one would remove.
    """
    names = list_checkpoints(run)
    line = lineage(names, read_parents(run))
    kept = {*line[:keep], *(name for name in line if keep_every is not None and name.step % keep_every == 0)}
    for name in names:
        if name in kept or name.attempt > attempt.number:
            continue
        # Checked each time: the process may be suspended between two removals while a successor starts.
        if is_superseded(run, attempt):
            return
        # Renamed first, so that a partly removed folder does not look like a checkpoint.
        temporary = temporary_checkpoint_folder(run, name)
        os.replace(run.checkpoints / str(name), temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def _begin(run: RunFolder, attempt: AttemptFolder, name: CheckpointName, needed: int) -> FileEntries:
    _refuse_if_superseded(run, attempt)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    remove_incomplete(run, attempt)  # first, because it may free the space that is required next
    require_free_space(run.checkpoints, needed)
    temporary_checkpoint_folder(run, name).mkdir()
    return {}


def remove_incomplete(run: RunFolder, attempt: AttemptFolder) -> None:
    """Remove what earlier attempts have begun to write and not committed."""
    for entry in run.checkpoints.glob(".*.tmp"):
        name = CheckpointName.parse(entry.name[1:].removesuffix(".tmp"))
        if name is not None and name.attempt < attempt.number:
            shutil.rmtree(entry, ignore_errors=True)


def require_free_space(folder: Path, size: int) -> None:
    """Check that the disk has room for a checkpoint of ``size`` bytes.

    Raises:
        CheckpointError: It does not.
    """
    needed = SPACE_FACTOR * size + MEBIBYTE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {needed / MEBIBYTE:.0f} MiB and {free / MEBIBYTE:.0f} MiB are free; "
            "make room, or lower checkpoint.keep"
        )


def _commit(
    run: RunFolder, attempt: AttemptFolder, name: CheckpointName, progress: TrainingProgress, files: FileEntries
) -> FileEntries:
    temporary = temporary_checkpoint_folder(run, name)
    files = files | {PROGRESS: _write_json(temporary / PROGRESS, asdict(progress))}
    manifest = {"layout": LAYOUT_VERSION, "step": name.step, "attempt": name.attempt, "files": files}
    entry = _write_json(temporary / MANIFEST, manifest)
    write_bytes(temporary / COMMIT, f"{entry['sha256']}\n".encode())
    force_to_disk(temporary)
    _refuse_if_superseded(run, attempt)  # writing may have taken long, or the process was suspended meanwhile
    os.replace(temporary, run.checkpoints / str(name))
    force_to_disk(run.checkpoints)
    return files


def _write_json(path: Path, content: dict[str, Any]) -> FileEntry:
    return write_bytes(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _refuse_if_superseded(run: RunFolder, attempt: AttemptFolder) -> None:
    if is_superseded(run, attempt):
        raise RunLockedError(f"{run.path}: a later attempt has started; attempt {attempt.number} stops writing")
