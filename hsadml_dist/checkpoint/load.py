"""Verify checkpoints and load the newest one that is intact."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
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
    read_progress,
    resumable_checkpoints,
)
from hsadml_dist.checkpoint.tensor_files import SHARDED_GROUPS, TensorGroup, TrainingState, list_groups, read_group
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import CheckpointError
from hsadml_dist.json_parsing import parse_json
from hsadml_dist.run.folder import RunFolder

MAX_MANIFEST_BYTES = 64 * 2**20
"""Far more than a manifest needs, so that a file that has become huge is not read into memory."""


@dataclass(frozen=True, kw_only=True)
class InferenceState:
    """The parts of a checkpoint that evaluation and prediction need.

    Attributes:
        model: The network's tensors by name; running averages in place of the weights that have one.
        centres: Class centres (C, D).
        bias: Bias of the loss on all logits; None for losses without one.
        data_digest: Digest of the shards it was trained on.
    """

    name: CheckpointName
    model: TensorGroup
    centres: torch.Tensor
    bias: float | None
    data_digest: str


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """The checkpoint that all ranks agreed on, and why newer ones were rejected.

    Attributes:
        name: The checkpoint, or None to start from scratch.
        rejected: (checkpoint, reason) of each newer one that is damaged.
    """

    name: CheckpointName | None
    rejected: list[tuple[CheckpointName, str]]


def choose_checkpoint(run: RunFolder, comm: Comm) -> CheckpointChoice:
    """Return the newest checkpoint that is intact on every rank. Collective: every rank must call it.

    Raises:
        CheckpointError: There are checkpoints, but none is intact: a start from scratch would silently lose the run.
    """
    rejected: list[tuple[CheckpointName, str]] = []
    for name in _of_rank_0(resumable_checkpoints(run), comm):
        damages = comm.all_gather_json(find_damage(run.checkpoints / str(name)))
        reason = next((f"rank {rank}: {damage}" for rank, damage in enumerate(damages) if damage), None)
        if reason is None:
            return CheckpointChoice(name=name, rejected=rejected)
        rejected.append((name, reason))
    if rejected:
        name, reason = rejected[0]
        raise CheckpointError(f"{run.checkpoints}: no checkpoint is intact; the newest, {name}: {reason}")
    return CheckpointChoice(name=None, rejected=rejected)


def _of_rank_0(names: Sequence[CheckpointName], comm: Comm) -> list[CheckpointName]:
    sent = comm.broadcast_json([str(name) for name in names])
    return [name for text in sent if (name := CheckpointName.parse(text)) is not None]


def load_checkpoint(run: RunFolder, name: CheckpointName, rows: range | None = None) -> TrainingState:
    """Return the state of a verified checkpoint, on the CPU.

    Args:
        rows: Class ids of the rows of the sharded groups to load, regardless of how they were sharded; None for all.
    """
    folder = run.checkpoints / str(name)
    groups = {
        group: read_group(folder, group, rows if group in SHARDED_GROUPS else None) for group in list_groups(folder)
    }
    return TrainingState(groups=groups, progress=read_progress(folder), rows=rows)


def load_inference_state(run: RunFolder) -> InferenceState:
    """Return network and centres of the newest intact checkpoint, as used for evaluation.

    Raises:
        CheckpointError: No checkpoint is intact, or there is none.
    """
    tried: set[CheckpointName] = set()
    while names := [name for name in resumable_checkpoints(run) if name not in tried]:
        tried.add(names[0])
        folder = run.checkpoints / str(names[0])
        try:
            if find_damage(folder) is None:
                return _read_inference_state(folder, names[0])
        except OSError:
            if folder.exists():
                raise
            # A running training has removed it, because there are newer ones: list them again.
    raise CheckpointError(f"{run.path}: there is no intact checkpoint; train the run first")


def _read_inference_state(folder: Path, name: CheckpointName) -> InferenceState:
    model, averages, centres, head = (read_group(folder, group) for group in ("model", "model_ema", "centres", "head"))
    return InferenceState(
        name=name,
        model=model | averages,
        centres=centres["weight"],
        bias=float(head["bias"]) if "bias" in head else None,
        data_digest=read_progress(folder).data_digest,
    )


def load_safetensors(path: Path) -> TensorGroup:
    """Return the tensors of a safetensors file by name; unlike a pickle, it cannot execute code when it is loaded.

    Raises:
        CheckpointError: The file does not exist, or has another format.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as fault:
        raise CheckpointError(f"{path}: the weights cannot be read: {fault.strerror or fault}") from fault
    except safetensors.SafetensorError as fault:
        raise CheckpointError(f"{path}: not a safetensors file ({fault}); no other format is supported") from fault


def find_damage(folder: Path) -> str | None:
    """Return how a checkpoint is damaged, or None if every file matches the manifest.

    Files that are not in the manifest are ignored; nothing opens them.
    """
    try:
        return _find_damage(folder)
    except OSError as fault:
        return f"{Path(fault.filename or folder).name}: {fault.strerror or fault}"


def _find_damage(folder: Path) -> str | None:
    manifest = _read_limited(folder / MANIFEST)
    if hashlib.sha256(manifest).hexdigest().encode() != _read_limited(folder / COMMIT).strip():
        return f"{MANIFEST} is not the one that was committed"
    try:
        record = parse_json(manifest)
    except ValueError:
        return f"{MANIFEST} is not JSON"
    damage = _manifest_damage(record, CheckpointName.parse(folder.name))
    if damage is not None:
        return damage
    damages = (_file_damage(folder / name, entry) for name, entry in record["files"].items())
    return next(filter(None, damages), None)


def _read_limited(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_MANIFEST_BYTES)


def _manifest_damage(record: Any, name: CheckpointName | None) -> str | None:
    """Return what is wrong with the content of a manifest, or None."""
    if not isinstance(record, dict) or "layout" not in record:
        return f"{MANIFEST} has no layout"
    if record["layout"] != LAYOUT_VERSION:
        return f"layout {record['layout']} is unknown; this version reads layout {LAYOUT_VERSION}"
    if name is not None and (record.get("step"), record.get("attempt")) != (name.step, name.attempt):
        return f"{MANIFEST} is that of step {record.get('step')}, attempt {record.get('attempt')}"
    files = record.get("files")
    if not isinstance(files, dict) or PROGRESS not in files:
        return f"{MANIFEST} does not list {PROGRESS}"
    invalid = (file for file, entry in files.items() if not _is_valid_entry(file, entry))
    return next((f"{MANIFEST} has no size and SHA-256 of {file!r}" for file in invalid), None)


def _is_valid_entry(file: str, entry: Any) -> bool:
    # A plain name, no path: nothing outside the checkpoint's folder may be read.
    plain = Path(file).name == file
    return plain and isinstance(entry, dict) and {"bytes": int, "sha256": str} == {k: type(entry[k]) for k in entry}


def _file_damage(path: Path, entry: dict[str, int | str]) -> str | None:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{path.name} is not a regular file"
        if found.st_size != entry["bytes"]:
            return f"{path.name} has {found.st_size} bytes, not {entry['bytes']}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:  # an error during a read does not name the file
        return f"{path.name}: {fault.strerror or fault}"
    return None if digest == entry["sha256"] else f"{path.name} does not match its SHA-256"
