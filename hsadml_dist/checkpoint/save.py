"""Writing a checkpoint: into a temporary folder, forced to disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hsadml_dist.checkpoint.layout import (
    COMMIT,
    LAYOUT_VERSION,
    MANIFEST,
    PROGRESS,
    CheckpointName,
    TrainingProgress,
    temporary_checkpoint_folder,
)
from hsadml_dist.checkpoint.retention import remove_incomplete, require_free_space
from hsadml_dist.checkpoint.tensor_files import (
    SHARDED_GROUPS,
    FileEntry,
    TensorGroup,
    TrainingState,
    fsync_folder,
    group_file_name,
    write_bytes,
    write_tensors,
)
from hsadml_dist.distributed.comm import Comm, SoloComm
from hsadml_dist.errors import CheckpointError, HsadmlError, RunLockedError, os_error_reason
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

FileEntries = dict[str, FileEntry]
"""Entries of the manifest by file."""


def save_checkpoint(
    run: RunFolder, attempt: AttemptFolder, state: TrainingState, comm: Comm | None = None
) -> CheckpointName:
    """Write ``state`` as this attempt's checkpoint of its step; nothing is seen of it until it is whole.

    To be called by all ranks: each writes the rows that it alone has, rank 0 all else.

    Args:
        run: The run folder, the same one for all ranks.
        attempt: The attempt that writes.
        state: This rank's state; what another rank writes may be left out of it.
        comm: The ranks; None: this process alone.

    Raises:
        CheckpointError: Too little space, or the folder cannot be written; earlier checkpoints are untouched.
        RunLockedError: A later attempt has started.
    """
    comm = comm or SoloComm()
    first, name = comm.topology.is_rank_zero, CheckpointName(state.progress.step, attempt.number)
    temporary, final = temporary_checkpoint_folder(run, name), run.checkpoints / str(name)
    own = dict(rank_files(state, first=first))
    needed = sum(comm.all_gather_object(sum(t.nbytes for group in own.values() for t in group.values())))
    try:
        run_on_all_ranks(comm, final, lambda: _begin(run, attempt, name, needed) if first else {})
        written = run_on_all_ranks(
            comm, final, lambda: {file: write_tensors(temporary / file, own[file]) for file in own}
        )
        files = {file: entry for one in written for file, entry in one.items()}
        run_on_all_ranks(comm, final, lambda: _commit(run, attempt, name, state.progress, files) if first else {})
    except HsadmlError:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return name


def rank_files(state: TrainingState, *, first: bool) -> Iterator[tuple[str, TensorGroup]]:
    """Yield (file, tensors) for what a rank writes: its rows of the shared-out groups; the first rank all else."""
    for group, tensors in state.groups.items():
        if state.rows is not None and group in SHARDED_GROUPS:
            if state.rows:
                yield group_file_name(group, state.rows), tensors
        elif first:
            yield group_file_name(group), tensors


def run_on_all_ranks(comm: Comm, checkpoint: Path, work: Callable[[], FileEntries]) -> list[FileEntries]:
    """Do this rank's work; return what all ranks' came to, or raise on all of them what failed on one."""
    try:
        answer: FileEntries | HsadmlError = work()
    except HsadmlError as fault:
        answer = fault
    except OSError as fault:
        where = fault.filename or checkpoint
        answer = CheckpointError(f"{where}: checkpoint {checkpoint.name} cannot be written: {os_error_reason(fault)}")
    answers: list[FileEntries | HsadmlError] = comm.all_gather_object(answer)
    for one in answers:
        if isinstance(one, HsadmlError):
            raise one
    return [one for one in answers if not isinstance(one, HsadmlError)]


def _begin(run: RunFolder, attempt: AttemptFolder, name: CheckpointName, needed: int) -> FileEntries:
    _refuse_if_superseded(run, attempt)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    remove_incomplete(run, attempt)  # first, as it may hold the room that is asked for next
    require_free_space(run.checkpoints, needed)
    temporary_checkpoint_folder(run, name).mkdir()
    return {}


def _refuse_if_superseded(run: RunFolder, attempt: AttemptFolder) -> None:
    if is_superseded(run, attempt):
        raise RunLockedError(f"{run.path}: a later attempt has started; attempt {attempt.number} writes nothing more")


def _commit(
    run: RunFolder, attempt: AttemptFolder, name: CheckpointName, progress: TrainingProgress, files: FileEntries
) -> FileEntries:
    temporary = temporary_checkpoint_folder(run, name)
    files = files | {PROGRESS: write_bytes(temporary / PROGRESS, progress.to_json().encode())}
    manifest = {"layout": LAYOUT_VERSION, "step": name.step, "attempt": name.attempt, "files": files}
    text = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    entry = write_bytes(temporary / MANIFEST, text)
    write_bytes(temporary / COMMIT, f"{entry['sha256']}\n".encode())
    fsync_folder(temporary)
    _refuse_if_superseded(run, attempt)  # writing may have taken long, or the process have been paused meanwhile
    os.replace(temporary, run.checkpoints / str(name))
    fsync_folder(run.checkpoints)
    return files
