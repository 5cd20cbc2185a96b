"""One text for one state: SHA-256 over parameters, moments and the position in the order."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hsadml_dist.checkpoint.layout import lineage, list_checkpoints, read_parents, read_progress
from hsadml_dist.checkpoint.load import find_damage
from hsadml_dist.checkpoint.tensor_files import group_file_name, list_groups, open_group, tensor_names
from hsadml_dist.errors import CheckpointError, UsageError
from hsadml_dist.run.folder import RunFolder


def run_digest(run: Path, step: int | None = None) -> str:
    """Return the digest of a run's newest checkpoint, or of the one at ``step``, as 64 hexadecimal digits.

    Equal states give equal texts, whatever the attempts or the number of ranks that wrote them.

    Raises:
        UsageError: There is no checkpoint of that step.
        CheckpointError: The checkpoint does not verify, or there is none.
    """
    while True:
        path = _chosen(RunFolder(run), step)
        fault = find_damage(path)
        try:
            if fault is None:
                return state_digest(path)
        except OSError as removed:
            fault = str(removed)
        # What a training under way has removed meanwhile has no fault: there are newer ones.
        if path.exists():
            raise CheckpointError(f"{path}: {fault}")


def _chosen(folder: RunFolder, step: int | None) -> Path:
    line = lineage(list_checkpoints(folder), read_parents(folder))
    names = [name for name in line if step is None or name.step == step]
    if not names and line:
        raise UsageError(
            f"--step {step}: no such checkpoint; there are {', '.join(str(n.step) for n in reversed(line))}"
        )
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
            for part in parts:  # rows one after the other: the bytes of the whole tensor
                total.update(part.tobytes())
    return total.hexdigest()
