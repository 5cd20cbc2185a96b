"""Writing a checkpoint: into a temporary folder, forced to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch

from hsadml_dist.checkpoint.layout import (
    COMMIT,
    LAYOUT_VERSION,
    MANIFEST,
    PROGRESS,
    TENSORS_SUFFIX,
    CheckpointName,
    committed,
    lineage,
    parents,
)
from hsadml_dist.checkpoint.state import TrainingState
from hsadml_dist.errors import CheckpointError, RunHeldError
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

MEBIBYTE = 2**20
SPACE_FACTOR = 1.1
"""Free space that must be left, as a multiple of the state's size."""


def write_checkpoint(run: RunFolder, attempt: AttemptFolder, state: TrainingState) -> CheckpointName:
    """Write ``state`` as this attempt's checkpoint of its step; nothing is seen of it until it is whole.

    Raises:
        CheckpointError: Too little space, or the folder cannot be written; earlier checkpoints are untouched.
        RunHeldError: A later attempt has started.
    """
    if is_superseded(run, attempt):
        raise RunHeldError(f"{run.path}: a later attempt has started; attempt {attempt.number} writes nothing more")
    name = CheckpointName(state.progress.step, attempt.number)
    temporary = run.checkpoints / f".{name}.tmp"
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        _check_space(run.checkpoints, state)
        _fill(temporary, state, attempt.number)
        os.replace(temporary, run.checkpoints / str(name))
        _sync_folder(run.checkpoints)
    except OSError as fault:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = "no space left" if fault.errno == errno.ENOSPC else fault.strerror
        raise CheckpointError(f"{run.checkpoints}: checkpoint {name} cannot be written: {reason}") from fault
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


def _check_space(folder: Path, state: TrainingState) -> None:
    needed = SPACE_FACTOR * sum(t.nbytes for group in state.groups.values() for t in group.values()) + MEBIBYTE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {needed / MEBIBYTE:.0f} MiB and {free / MEBIBYTE:.0f} MiB are free; "
            "make room, or lower checkpoint.keep"
        )


def _fill(folder: Path, state: TrainingState, attempt: int) -> None:
    folder.mkdir()
    files = {name: _write(folder / name, data) for name, data in _contents(state)}
    manifest = {"layout": LAYOUT_VERSION, "step": state.progress.step, "attempt": attempt, "files": files}
    text = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    entry = _write(folder / MANIFEST, text)
    _write(folder / COMMIT, f"{entry['sha256']}\n".encode())
    _sync_folder(folder)


def _contents(state: TrainingState) -> Iterator[tuple[str, bytes]]:
    for group, tensors in state.groups.items():
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        yield f"{group}{TENSORS_SUFFIX}", safetensors.torch.save(whole)
    yield PROGRESS, state.progress.to_json().encode()


def _write(path: Path, data: bytes) -> dict[str, int | str]:
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
