"""Verify checkpoints and load the newest one that is intact."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hsadml_dist.checkpoint.layout import (
    COMMIT,
    LAYOUT_VERSION,
    MANIFEST,
    PROGRESS,
    CheckpointName,
    lineage,
    list_checkpoints,
    read_parents,
    read_progress,
)
from hsadml_dist.checkpoint.tensor_files import SHARDED_GROUPS, TensorGroup, TrainingState, list_groups, read_group
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import CheckpointError
from hsadml_dist.run.folder import RunFolder

MANIFEST_BYTES = 64 * 2**20
"""Far more than a manifest takes: a file that has become huge is not read into memory."""


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, as words, or None if every file is as its manifest says.

    Files that the manifest does not name are no fault, and no reader opens them.
    """
    try:
        return next(_faults(folder), None)
    except OSError as fault:
        return f"{Path(fault.filename or folder).name}: {fault.strerror or fault}"


def _faults(folder: Path) -> Iterator[str]:
    manifest = _content(folder / MANIFEST)
    if hashlib.sha256(manifest).hexdigest().encode() != _content(folder / COMMIT).strip():
        yield f"{MANIFEST} is not the one that was committed"
        return
    try:
        record = json.loads(manifest)
    except ValueError:
        yield f"{MANIFEST} is not JSON"
        return
    fault = _manifest_fault(record, CheckpointName.parse(folder.name))
    if fault:
        yield fault
        return
    for name, entry in record["files"].items():
        yield from _file_faults(folder / name, entry)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MANIFEST_BYTES)


def _manifest_fault(record: Any, name: CheckpointName | None) -> str | None:
    """Return what is wrong with a manifest's content, or None."""
    if not isinstance(record, dict) or "layout" not in record:
        return f"{MANIFEST} names no layout"
    if record["layout"] != LAYOUT_VERSION:
        return f"layout {record['layout']} is unknown; this version reads layout {LAYOUT_VERSION}"
    if name is not None and (record.get("step"), record.get("attempt")) != (name.step, name.attempt):
        return f"{MANIFEST} is that of step {record.get('step')}, attempt {record.get('attempt')}"
    files = record.get("files")
    if not isinstance(files, dict) or PROGRESS not in files:
        return f"{MANIFEST} does not name {PROGRESS}"
    wrong = (file for file, entry in files.items() if not _is_entry(file, entry))
    return next((f"{MANIFEST} has no size and SHA-256 of {file!r}" for file in wrong), None)


def _is_entry(file: str, entry: Any) -> bool:
    # A name, not a path: nothing outside the checkpoint is any reader's business.
    plain = Path(file).name == file
    return plain and isinstance(entry, dict) and {"bytes": int, "sha256": str} == {k: type(entry[k]) for k in entry}


def _file_faults(path: Path, entry: dict[str, int | str]) -> Iterator[str]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            yield f"{path.name} is no plain file"
            return
        if found.st_size != entry["bytes"]:
            yield f"{path.name} has {found.st_size} bytes, not {entry['bytes']}"
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:  # one that comes while reading does not say of which file
        yield f"{path.name}: {fault.strerror or fault}"
        return
    if digest != entry["sha256"]:
        yield f"{path.name} does not match its SHA-256"


@dataclass(frozen=True, kw_only=True)
class InferenceState:
    """What judging and predicting need of a checkpoint.

    Attributes:
        name: The checkpoint.
        model: The network's tensors by name; of weights that a running average is kept of, the average.
        centres: Class centres (C, D).
        data_digest: Identity of the shards that it was trained on.
    """

    name: CheckpointName
    model: TensorGroup
    centres: torch.Tensor
    data_digest: str


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """The checkpoint that all ranks agreed on, and why newer ones were passed over.

    Attributes:
        name: The checkpoint; None: there is none, begin from nothing.
        rejected: (checkpoint, reason) of each newer one that does not verify.
    """

    name: CheckpointName | None
    rejected: list[tuple[CheckpointName, str]]


def choose_checkpoint(run: RunFolder, comm: Comm) -> CheckpointChoice:
    """Return the newest checkpoint that verifies on every rank; to be called by all ranks.

    Raises:
        CheckpointError: There are checkpoints, but none of them verifies: starting over would lose the run silently.
    """
    rejected: list[tuple[CheckpointName, str]] = []
    for name in comm.broadcast_object(lineage(list_checkpoints(run), read_parents(run))):
        faults = comm.all_gather_object(find_damage(run.checkpoints / str(name)))
        reason = next((f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault), None)
        if reason is None:
            return CheckpointChoice(name=name, rejected=rejected)
        rejected.append((name, reason))
    if rejected:
        name, reason = rejected[0]
        raise CheckpointError(f"{run.checkpoints}: no checkpoint verifies; the newest, {name}: {reason}")
    return CheckpointChoice(name=None, rejected=rejected)


def load_checkpoint(run: RunFolder, name: CheckpointName, rows: range | None = None) -> TrainingState:
    """Return the state of a checkpoint that has been verified, on the CPU.

    Args:
        run: The run folder.
        name: The checkpoint.
        rows: Class ids of the centres to read; None: all. Who wrote which of them does not matter.
    """
    folder = run.checkpoints / str(name)
    groups = {
        group: read_group(folder, group, rows if group in SHARDED_GROUPS else None) for group in list_groups(folder)
    }
    return TrainingState(groups=groups, progress=read_progress(folder), rows=rows)


def load_safetensors(path: Path) -> TensorGroup:
    """Return foreign weights by name from a safetensors file, which cannot run code when it is read.

    Raises:
        CheckpointError: There is no such file, or it is in another format.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as fault:
        raise CheckpointError(f"{path}: the weights cannot be read: {fault.strerror or fault}") from fault
    except safetensors.SafetensorError as fault:
        raise CheckpointError(f"{path}: not a safetensors file ({fault}); other formats are not read") from fault


def load_inference_state(run: RunFolder) -> InferenceState:
    """Return the network and centres of the newest checkpoint that verifies, as they are to be judged.

    Raises:
        CheckpointError: None does, or there is none.
    """
    tried: set[CheckpointName] = set()
    while names := [name for name in lineage(list_checkpoints(run), read_parents(run)) if name not in tried]:
        tried.add(names[0])
        folder = run.checkpoints / str(names[0])
        try:
            if find_damage(folder) is None:
                return _inference_state(folder, names[0])
        except OSError:
            if folder.exists():
                raise
            # A training under way has removed it meanwhile, since there are newer ones: look again.
    raise CheckpointError(f"{run.path}: there is no checkpoint that verifies; train the run first")


def _inference_state(folder: Path, name: CheckpointName) -> InferenceState:
    model, averages, centres = (read_group(folder, group) for group in ("model", "model_ema", "centres"))
    digest = read_progress(folder).data_digest
    return InferenceState(name=name, model=model | averages, centres=centres["weight"], data_digest=digest)
