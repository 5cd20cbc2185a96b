"""Writing a checkpoint: into a temporary folder, forced to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch

from hsadml_dist.checkpoint.layout import (
    COMMIT,
    LAYOUT_VERSION,
    MANIFEST,
    PROGRESS,
    CheckpointName,
    Progress,
    committed,
    lineage,
    parents,
)
from hsadml_dist.checkpoint.rows import ROW_GROUPS, file_name
from hsadml_dist.checkpoint.state import TensorGroup, TrainingState
from hsadml_dist.comm import Comm, SoloComm
from hsadml_dist.errors import CheckpointError, HsadmlError, RunHeldError
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

MEBIBYTE = 2**20
SPACE_FACTOR = 1.1
"""Free space that must be left, as a multiple of the state's size."""

Entry = dict[str, int | str]
"""Size and SHA-256 of a file."""
Entries = dict[str, Entry]
"""Entries of the manifest by file."""


def write_checkpoint(
    run: RunFolder, attempt: AttemptFolder, state: TrainingState, comm: Comm | None = None
) -> CheckpointName:
    """Write ``state`` as this attempt's checkpoint of its step; nothing is seen of it until it is whole.

    To be called by all ranks: each writes the rows that it alone has, rank 0 all else.

    Args:
        run: The run folder, the same one for all ranks.
        attempt: The attempt that writes.
        state: This rank's state.
        comm: The ranks; None: this process alone.

    Raises:
        CheckpointError: Too little space, or the folder cannot be written; earlier checkpoints are untouched.
        RunHeldError: A later attempt has started.
    """
    comm = comm or SoloComm()
    first, name = comm.topology.is_first, CheckpointName(state.progress.step, attempt.number)
    temporary = run.checkpoints / f".{name}.tmp"
    own = dict(_own_groups(state, first=first))
    needed = sum(comm.gather(sum(t.nbytes for group in own.values() for t in group.values())))
    try:
        _agree(comm, name, lambda: _begin(run, attempt, temporary, needed) if first else {})
        written = _agree(comm, name, lambda: {file: _write(temporary / file, _bytes(own[file])) for file in own})
        files = {file: entry for one in written for file, entry in one.items()}
        _agree(comm, name, lambda: _commit(run, temporary, name, state.progress, files) if first else {})
    except HsadmlError:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return name


def prune(run: RunFolder, attempt: AttemptFolder, keep: int, keep_every: int | None) -> None:
    """Remove what is no longer needed: all but the newest ``keep``, multiples of ``keep_every``, and half-written ones.

    Never touches a file of a later attempt, nor any once there is one: it may be reading what this one would remove.
    """
    if is_superseded(run, attempt):
        return
    names = committed(run)
    kept = set(lineage(names, parents(run))[:keep])
    for name in names:
        forever = keep_every is not None and name.step % keep_every == 0
        if name not in kept and not forever and name.attempt <= attempt.number:
            _remove(run.checkpoints, name)
    for entry in run.checkpoints.glob(".*.tmp"):
        name_of = CheckpointName.parse(entry.name[1:].removesuffix(".tmp"))
        if name_of is not None and name_of.attempt < attempt.number:
            shutil.rmtree(entry, ignore_errors=True)


def _remove(folder: Path, name: CheckpointName) -> None:
    # Renamed first: a folder that is half removed must not look like a checkpoint.
    doomed = folder / f".{name}.tmp"
    os.replace(folder / str(name), doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _own_groups(state: TrainingState, *, first: bool) -> Iterator[tuple[str, TensorGroup]]:
    """Yield (file, tensors) for what this rank writes."""
    for group, tensors in state.groups.items():
        if state.rows is not None and group in ROW_GROUPS:
            if state.rows:
                yield file_name(group, state.rows), tensors
        elif first:
            yield file_name(group), tensors


def _agree(comm: Comm, name: CheckpointName, work: Callable[[], Entries]) -> list[Entries]:
    """Do this rank's work; return what all ranks' came to, or raise on all of them what failed on one."""
    try:
        answer: Entries | HsadmlError = work()
    except HsadmlError as fault:
        answer = fault
    except OSError as fault:
        reason = "no space left" if fault.errno == errno.ENOSPC else fault.strerror
        answer = CheckpointError(f"{fault.filename or name}: checkpoint {name} cannot be written: {reason}")
    answers: list[Entries | HsadmlError] = comm.gather(answer)
    for one in answers:
        if isinstance(one, HsadmlError):
            raise one
    return [one for one in answers if not isinstance(one, HsadmlError)]


def _begin(run: RunFolder, attempt: AttemptFolder, temporary: Path, needed: int) -> Entries:
    if is_superseded(run, attempt):
        raise RunHeldError(f"{run.path}: a later attempt has started; attempt {attempt.number} writes nothing more")
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    _check_space(run.checkpoints, needed)
    temporary.mkdir()
    return {}


def _check_space(folder: Path, size: int) -> None:
    needed = SPACE_FACTOR * size + MEBIBYTE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {needed / MEBIBYTE:.0f} MiB and {free / MEBIBYTE:.0f} MiB are free; "
            "make room, or lower checkpoint.keep"
        )


def _commit(run: RunFolder, temporary: Path, name: CheckpointName, progress: Progress, files: Entries) -> Entries:
    files = files | {PROGRESS: _write(temporary / PROGRESS, progress.to_json().encode())}
    manifest = {"layout": LAYOUT_VERSION, "step": name.step, "attempt": name.attempt, "files": files}
    text = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    entry = _write(temporary / MANIFEST, text)
    _write(temporary / COMMIT, f"{entry['sha256']}\n".encode())
    _sync_folder(temporary)
    os.replace(temporary, run.checkpoints / str(name))
    _sync_folder(run.checkpoints)
    return files


def _bytes(tensors: TensorGroup) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _write(path: Path, data: bytes) -> Entry:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
