"""Checkpoint layout 1: names, manifest, and the lineage of checkpoints that a later attempt may resume from.

::

    checkpoints/step-00001234.attempt-0002/
        *.safetensors     tensors by name, one file per group; GROUP.rows-A-B.safetensors: the rows of one rank
        progress.json     step, samples consumed, seed, fingerprints of recipe and data
        manifest.json     sizes and SHA-256 of the above
        COMMIT            SHA-256 of the manifest
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import CheckpointError
from hsadml_dist.json_parsing import INVALID, parse_json
from hsadml_dist.run.folder import RunFolder

LAYOUT_VERSION = 1
MANIFEST = "manifest.json"
COMMIT = "COMMIT"
PROGRESS = "progress.json"
TENSORS_SUFFIX = ".safetensors"

_NAME = re.compile(r"step-(\d{8,})\.attempt-(\d{4,})")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """The identity of a checkpoint in its run; sorts by step, then attempt."""

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}.attempt-{self.attempt:04d}"

    @staticmethod
    def parse(text: str) -> CheckpointName | None:
        """Return the checkpoint name of a folder's name, or None if it is not one."""
        match = _NAME.fullmatch(text)
        return CheckpointName(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Position of a training, and identity of its recipe and data.

    Attributes:
        step: Completed steps.
        consumed: Samples consumed, the position in the sample order.
        fingerprint: Fingerprint of the recipe.
        data_digest: Digest of the shards.
        world_size: Number of ranks that wrote the checkpoint; any number may load it.
        skipped: Consecutive steps up to this one that changed nothing because they were not finite.
    """

    step: int
    consumed: int
    seed: int
    fingerprint: str
    data_digest: str
    world_size: int
    skipped: int = 0


def list_checkpoints(run: RunFolder) -> list[CheckpointName]:
    """Return the sorted names of all committed checkpoints, without verifying them.

    A folder gets its name when it is complete. One without ``COMMIT`` has lost that file; it is included, so that it is
    rejected with a reason and not silently.
    """
    if not run.checkpoints.is_dir():
        return []
    names = (CheckpointName.parse(entry.name) for entry in run.checkpoints.iterdir())
    return sorted(name for name in names if name is not None)


def temporary_checkpoint_folder(run: RunFolder, name: CheckpointName) -> Path:
    """Return the folder of a checkpoint while it is being written or removed."""
    return run.checkpoints / f".{name}.tmp"


def read_parents(run: RunFolder) -> dict[int, CheckpointName | None]:
    """Return, for each attempt that has chosen one, the checkpoint it resumed from; None for a start from scratch.

    Raises:
        CheckpointError: The record of an attempt is damaged.
    """
    return {attempt.number: _read_parent(attempt.parent) for attempt in run.attempts() if attempt.parent.exists()}


def _read_parent(path: Path) -> CheckpointName | None:
    try:
        text = parse_json(path.read_bytes())["checkpoint"]
        name = None if text is None else CheckpointName.parse(text)
    except INVALID as fault:
        raise CheckpointError(f"{path}: damaged; it names the checkpoint from which its attempt resumed") from fault
    if text is not None and name is None:
        raise CheckpointError(f"{path}: {text!r} is not the name of a checkpoint")
    return name


def lineage(names: Sequence[CheckpointName], parents: Mapping[int, CheckpointName | None]) -> list[CheckpointName]:
    """Return the checkpoints that the next attempt may resume from, newest first.

    Walks back from the latest attempt: its own checkpoints, then its parent and what the parent's attempt had committed
    before it, and so on. A checkpoint that an attempt committed after a later attempt had chosen its parent (by a rank
    that was cut off and kept running) is not part of the lineage.
    """
    line: list[CheckpointName] = []
    attempt: int | None = max([*parents, *(name.attempt for name in names)], default=None)
    limit: int | None = None
    while attempt is not None:
        own = [name for name in names if name.attempt == attempt and (limit is None or name.step <= limit)]
        line += sorted(own, reverse=True)
        parent = parents.get(attempt)
        limit = parent.step if parent else None
        attempt = parent.attempt if parent else None
    return line


def resumable_checkpoints(run: RunFolder) -> list[CheckpointName]:
    """Return the run's :func:`lineage`."""
    return lineage(list_checkpoints(run), read_parents(run))


def read_progress(folder: Path) -> TrainingProgress:
    """Return the progress of a verified checkpoint.

    Raises:
        CheckpointError: It is not one of this version.
    """
    try:
        return TrainingProgress(**parse_json((folder / PROGRESS).read_bytes()))
    except INVALID as fault:
        raise CheckpointError(f"{folder / PROGRESS}: not the progress of a training: {fault}") from fault
