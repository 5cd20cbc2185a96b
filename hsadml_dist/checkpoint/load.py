"""Reading the newest checkpoint that verifies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from hsadml_dist.checkpoint.layout import CheckpointName, lineage, list_checkpoints, read_parents, read_progress
from hsadml_dist.checkpoint.rows import SHARDED_GROUPS, list_groups, read_group
from hsadml_dist.checkpoint.state import TensorGroup, TrainingState
from hsadml_dist.checkpoint.verify import find_damage
from hsadml_dist.comm import Comm
from hsadml_dist.errors import CheckpointError
from hsadml_dist.run.folder import RunFolder


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
