"""Where an attempt begins: fresh weights, given ones, or the state of the chosen checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.checkpoint.layout import TrainingProgress
from hsadml_dist.checkpoint.load import CheckpointChoice, load_checkpoint, load_safetensors
from hsadml_dist.config import Recipe
from hsadml_dist.engine.learner import Learner
from hsadml_dist.errors import CheckpointError, ConfigError, Fault
from hsadml_dist.model_factory import build_network
from hsadml_dist.models.network import EmbeddingNet
from hsadml_dist.models.pretrained import load_pretrained
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.trackers import Recorder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Puts a state into a learner.

    Attributes:
        recipe: All settings.
        run: The run folder, the only one that states are read from.
        data_digest: Digest of the samples that are trained on.
        learner: Gets the state.
        records: Get a word on what was read and what was passed over.
    """

    recipe: Recipe
    run: RunFolder
    data_digest: str
    learner: Learner
    records: Recorder

    def go_on_from(self, choice: CheckpointChoice) -> int:
        """Put the chosen state into place; return the number of steps done.

        Raises:
            ConfigError: The shards hold other samples than those of the run.
            CheckpointError: The checkpoint was written under other settings.
        """
        for name, reason in choice.rejected:
            log.warning("checkpoint %s passed over: %s", name, reason)
            self.records.event("fell_back", name.step, checkpoint=str(name), reason=reason)
        if choice.name is None:
            return 0
        state = load_checkpoint(self.run, choice.name, self.learner.head.rows)
        self._check_same_data(state.progress)
        self.learner.load(state.groups)
        self.learner.guard.consecutive_skips = state.progress.skipped
        self.records.event("resumed", state.progress.step, checkpoint=str(choice.name))
        return state.progress.step

    def _check_same_data(self, saved: TrainingProgress) -> None:
        if saved.data_digest != self.data_digest:
            problem = f"{self.recipe.data.shards!r} holds other samples than this run was started with"
            raise ConfigError([Fault(where="recipe", key="data.shards", problem=problem)])
        if saved.fingerprint != self.recipe.fingerprint():
            raise CheckpointError(f"{self.run.path}: the checkpoint was written under other settings than config.yaml")


def initial_network(recipe: Recipe, *, fresh: bool) -> EmbeddingNet:
    """Return the network as a training gets it, on the CPU.

    Args:
        recipe: All settings.
        fresh: Whether it is the run's start, so that given weights count; else a checkpoint's will.

    Raises:
        ConfigError: Given weights do not fit.
        CheckpointError: Given weights cannot be read.
    """
    network, source = build_network(recipe), recipe.model.init_from
    if source is None or not fresh:
        return network
    adopted = load_pretrained(network, load_safetensors(Path(source)), source)
    network.changes += (f"weights of {source}: {adopted}",)
    return network
