"""The digest of a training state: SHA-256 over parameters, moments and the position in the sample order."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hsadml_dist.checkpoint.layout import read_progress, resumable_checkpoints
from hsadml_dist.checkpoint.load import find_damage
from hsadml_dist.checkpoint.tensor_files import group_file_name, list_groups, open_group, tensor_names
from hsadml_dist.errors import CheckpointError, UsageError
from hsadml_dist.run.folder import RunFolder


def run_digest(run: Path, step: int | None = None) -> str:
    """Return the digest of a run's newest checkpoint, or of the one at ``step``, as 64 hexadecimal digits.

    Equal states have equal digests, for any attempts and any number of ranks that wrote them.

    Raises:
        UsageError: There is no checkpoint of that step.
        CheckpointError: The checkpoint is damaged, or there is none.
    """
    while True:
        path = _find_checkpoint(RunFolder(run), step)
        damage = find_damage(path)
        try:
            if damage is None:
                return state_digest(path)
        except OSError as fault:
            damage = str(fault)
        # A checkpoint that a running training has just removed is not damaged: there are newer ones.
        if path.exists():
            raise CheckpointError(f"{path}: {damage}")


def _find_checkpoint(folder: RunFolder, step: int | None) -> Path:
    line = resumable_checkpoints(folder)
    names = [name for name in line if step is None or name.step == step]
    if not names and line:
        steps = ", ".join(str(name.step) for name in reversed(line))
        raise UsageError(f"--step {step}: no such checkpoint; available: {steps}")
    if not names:
        raise CheckpointError(f"{folder.path}: there is no checkpoint yet")
    return folder.checkpoints / str(names[0])


def state_digest(folder: Path) -> str:
    """Return the digest of a verified checkpoint."""
    total = hashlib.sha256()
    progress = read_progress(folder)
    total.update(f"step {progress.step} consumed {progress.consumed} seed {progress.seed}\n".encode())
    for group in list_groups(folder):
        files = list(open_group(folder, group, "np"))
        for name in tensor_names(files):
            parts = [file.tensors.get_tensor(name) for file in files]
            parts = parts if parts[0].ndim else parts[:1]
            shape = (sum(map(len, parts)), *parts[0].shape[1:]) if parts[0].ndim else ()
            total.update(f"{group_file_name(group)} {name} {parts[0].dtype} {shape}\n".encode())
            for part in parts:  # shards in row order: together the bytes of the whole tensor
                total.update(part.tobytes())
    return total.hexdigest()
