"""Where an attempt starts: initial weights, pretrained weights, or the state of a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from hsadml_dist.addresses import display_address
from hsadml_dist.checkpoint.load import CheckpointChoice, load_checkpoint, load_safetensors
from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import TrainConfig
from hsadml_dist.data.loader import TrainData
from hsadml_dist.engine.learner import Learner
from hsadml_dist.errors import CheckpointError, ConfigError, Fault
from hsadml_dist.model_factory import build_network
from hsadml_dist.models.network import EmbeddingNet
from hsadml_dist.models.pretrained import load_pretrained
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.trackers import Recorder

log = logging.getLogger(__name__)


def initial_network(recipe: Recipe, *, fresh: bool) -> EmbeddingNet:
    """Return the network at the start of an attempt, on the CPU.

    Args:
        recipe: All settings.
        fresh: True if the run starts without a checkpoint, so that ``model.init_from`` applies.

    Raises:
        ConfigError: The pretrained weights do not match the network.
        CheckpointError: The pretrained weights cannot be read.
    """
    network, source = build_network(recipe), recipe.model.init_from
    if source is None or not fresh:
        return network
    report = load_pretrained(network, load_safetensors(Path(source)), source)
    network.changes += (f"weights of {source}: {report}",)
    return network


def resume_from(
    choice: CheckpointChoice,
    learner: Learner,
    recipe: Recipe,
    train_data: TrainData,
    run: RunFolder,
    recorder: Recorder,
) -> int:
    """Load the chosen checkpoint into the learner. Collective: every rank must call it.

    Args:
        choice: The checkpoint, and those that were rejected.
        learner: Receives the state.
        recipe: All settings.
        train_data: Input and length of the training.
        run: The run folder.
        recorder: Records what was loaded and rejected.

    Returns:
        The number of steps done; 0 without a checkpoint.

    Raises:
        ConfigError: The shards contain other samples than at the start of the run, or the run has more steps already.
        CheckpointError: The checkpoint was written with other settings.
    """
    for name, reason in choice.rejected:
        log.warning("checkpoint %s rejected: %s", name, reason)
        recorder.event("fell_back", name.step, checkpoint=str(name), reason=reason)
    if choice.name is None:
        return 0
    state = load_checkpoint(run, choice.name, learner.head.rows)
    if state.progress.data_digest != train_data.index.digest:
        problem = f"{display_address(recipe.data.shards)!r} contains other samples than at the start of this run"
        raise ConfigError([Fault(where="recipe", key="data.shards", problem=problem)])
    if state.progress.fingerprint != recipe.fingerprint():
        raise CheckpointError(f"{run.path}: the checkpoint was written with other settings than config.yaml")
    _check_length(recipe.train, train_data.total_steps, state.progress.step, run)
    learner.load(state.groups)
    learner.guard.consecutive_skips = state.progress.skipped
    recorder.event("resumed", state.progress.step, checkpoint=str(choice.name))
    return state.progress.step


def _check_length(train: TrainConfig, total_steps: int, done: int, run: RunFolder) -> None:
    """Raise ConfigError if the run would end before a step that it has done."""
    if done <= total_steps:
        return
    key, value = train.given_length
    problem = (
        f"{value} ends at step {total_steps}, but {run.path} has done {done} steps; a run may be extended but not "
        "shortened; for a new run choose another run folder"
    )
    raise ConfigError([Fault(where="recipe", key=key, problem=problem)])
