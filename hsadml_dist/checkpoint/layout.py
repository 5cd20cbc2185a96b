"""Layout 1 of a checkpoint: names, manifest, and which checkpoints a later attempt may go on from.

::

    checkpoints/step-00001234.attempt-0002/
        *.safetensors     tensors by name, one file a group; GROUP.rows-A-B.safetensors: rows that one rank had
        progress.json     step, samples consumed, seed, and what the state belongs to
        manifest.json     sizes and SHA-256 of the above
        COMMIT            SHA-256 of the manifest
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsadml_dist.errors import CheckpointError
from hsadml_dist.run.folder import RunFolder

LAYOUT_VERSION = 1
MANIFEST = "manifest.json"
COMMIT = "COMMIT"
PROGRESS = "progress.json"
TENSORS_SUFFIX = ".safetensors"

_NAME = re.compile(r"step-(\d{8,})\.attempt-(\d{4,})")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's identity in its run; sorts by step, then attempt."""

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}.attempt-{self.attempt:04d}"

    @staticmethod
    def parse(text: str) -> CheckpointName | None:
        """Return the name that a folder's name stands for, or None."""
        match = _NAME.fullmatch(text)
        return CheckpointName(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Where a training stands, and what its state belongs to.

    Attributes:
        step: Steps done.
        consumed: Samples consumed, the position in the order.
        seed: The run's seed.
        fingerprint: The recipe's identity.
        data_digest: The shards' identity.
        world_size: Number of ranks that wrote it; any number may read it.
        skipped: Steps in a row, up to this one, that changed nothing since they were not finite.
    """

    step: int
    consumed: int
    seed: int
    fingerprint: str
    data_digest: str
    world_size: int
    skipped: int = 0

    def to_json(self) -> str:
        """Return the text of ``progress.json``."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def list_checkpoints(run: RunFolder) -> list[CheckpointName]:
    """Return the names of all committed checkpoints, ascending; whether they verify is another question.

    A folder has its name from the moment it is whole: one without a ``COMMIT`` has lost it, and is named here, so that
    it is passed over with a reason and not in silence.
    """
    if not run.checkpoints.is_dir():
        return []
    names = (CheckpointName.parse(entry.name) for entry in run.checkpoints.iterdir())
    return sorted(name for name in names if name is not None)


def temporary_checkpoint_folder(run: RunFolder, name: CheckpointName) -> Path:
    """Return the folder that a checkpoint is in while it is being written or removed."""
    return run.checkpoints / f".{name}.tmp"


def read_parents(run: RunFolder) -> dict[int, CheckpointName | None]:
    """Return, for each attempt that has chosen one, the checkpoint it went on from; None for a start from nothing.

    Raises:
        CheckpointError: An attempt's record of it is damaged.
    """
    return {attempt.number: _parent_of(attempt.parent) for attempt in run.attempts() if attempt.parent.exists()}


def _parent_of(path: Path) -> CheckpointName | None:
    try:
        text = json.loads(path.read_text())["checkpoint"]
        name = None if text is None else CheckpointName.parse(text)
    except (ValueError, KeyError, TypeError) as fault:
        raise CheckpointError(f"{path}: damaged; it says which checkpoint its attempt went on from") from fault
    if text is not None and name is None:
        raise CheckpointError(f"{path}: {text!r} is no checkpoint's name")
    return name


def lineage(names: Sequence[CheckpointName], chosen: Mapping[int, CheckpointName | None]) -> list[CheckpointName]:
    """Return the checkpoints that the next attempt may go on from, newest first.

    Walks back from the latest attempt: its own commits, then its parent and what that parent's attempt had committed
    before it, and so on. A commit by an attempt after a later one had chosen its parent (a rank that lived on, cut
    off) is in nobody's line and is left out.
    """
    line: list[CheckpointName] = []
    attempt: int | None = max([*chosen, *(name.attempt for name in names)], default=None)
    limit: int | None = None
    while attempt is not None:
        own = [name for name in names if name.attempt == attempt and (limit is None or name.step <= limit)]
        line += sorted(own, reverse=True)
        parent = chosen.get(attempt)
        limit = parent.step if parent else None
        attempt = parent.attempt if parent else None
    return line


def read_progress(folder: Path) -> TrainingProgress:
    """Return the progress of a verified checkpoint."""
    record: dict[str, Any] = json.loads((folder / PROGRESS).read_text())
    return TrainingProgress(**record)
