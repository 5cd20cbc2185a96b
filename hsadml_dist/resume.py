"""Where an attempt begins: the state of the chosen checkpoint, given weights, or fresh ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.checkpoint.layout import Progress
from hsadml_dist.checkpoint.load import Choice, read_checkpoint, read_weights
from hsadml_dist.config import Recipe
from hsadml_dist.engine.learner import Learner
from hsadml_dist.errors import CheckpointError, ConfigError, Fault
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.records import Records

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
    records: Records

    def go_on_from(self, choice: Choice) -> int:
        """Put the chosen state into place; return the number of steps done.

        Raises:
            ConfigError: The shards hold other samples than those of the run, or given weights do not fit.
            CheckpointError: The checkpoint was written under other settings.
        """
        for name, reason in choice.passed_over:
            log.warning("checkpoint %s passed over: %s", name, reason)
            self.records.event("fell_back", name.step, checkpoint=str(name), reason=reason)
        if choice.name is None:
            self._load_initial_weights()
            return 0
        state = read_checkpoint(self.run, choice.name, self.learner.head.rows)
        self._check_same_data(state.progress)
        self.learner.load(state.groups)
        self.learner.guard.in_a_row = state.progress.skipped
        self.records.event("resumed", state.progress.step, checkpoint=str(choice.name))
        return state.progress.step

    def _load_initial_weights(self) -> None:
        source = self.recipe.model.init_from
        if source is None:
            return
        try:
            self.learner.engine.model.load_state_dict(read_weights(Path(source)))
        except RuntimeError as fault:  # names and shapes that do not fit, all of them in one text
            problem = f"{source!r} does not fit {self.recipe.model.name!r}: {' '.join(str(fault).split())}"
            raise ConfigError([Fault(where="recipe", key="model.init_from", problem=problem)]) from fault

    def _check_same_data(self, saved: Progress) -> None:
        if saved.data_digest != self.data_digest:
            problem = f"{self.recipe.data.shards!r} holds other samples than this run was started with"
            raise ConfigError([Fault(where="recipe", key="data.shards", problem=problem)])
        if saved.fingerprint != self.recipe.fingerprint():
            raise CheckpointError(f"{self.run.path}: the checkpoint was written under other settings than config.yaml")
