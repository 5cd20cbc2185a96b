"""A whole recipe: one section a part of the system."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hsadml_dist.config.checkpoint import CheckpointConfig
from hsadml_dist.config.data import DataConfig
from hsadml_dist.config.engine import EngineConfig
from hsadml_dist.config.evaluation import EvaluationConfig
from hsadml_dist.config.keys import iter_settings
from hsadml_dist.config.loss import LossConfig
from hsadml_dist.config.model import ModelConfig
from hsadml_dist.config.optim import OptimConfig
from hsadml_dist.config.run import RunConfig
from hsadml_dist.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted key, problem) for settings that are right alone but not together."""
        if (self.train.steps is None) == (self.train.epochs is None):
            given = "neither" if self.train.steps is None else "both"
            yield "train.steps", f"exactly one of train.steps and train.epochs must be given, {given} is"
        if self.data.val_fold is not None and self.data.val_fold == self.data.fold:
            yield "data.val_fold", f"{self.data.val_fold} is the test fold too; the two must differ"
        if self.train.global_batch % self.engine.accumulate:
            yield (
                "engine.accumulate",
                f"{self.engine.accumulate} does not divide train.global_batch {self.train.global_batch}",
            )
        yield from self.engine.conflicts()

    def identity(self) -> dict[str, Any]:
        """Return the settings that make the run what it is, by dotted key; none of them may change on resume."""
        kept = {key: value for key, value, rule in iter_settings(self) if rule.on_resume == "identity"}
        # A cosine reaches its end at the last step: another length would be another curve from the first step on.
        if self.optim.schedule == "cosine":
            kept |= {"train.steps": self.train.steps, "train.epochs": self.train.epochs}
        return kept

    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits that name the identity.

        Settings that came later and are at their defaults have no part in it, so that a run outlives an update.
        """
        unused = {key for key, value, rule in iter_settings(self) if rule.added_later and value == rule.default}
        named = {key: value for key, value in self.identity().items() if key not in unused}
        text = json.dumps(named, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain dictionaries."""
        return dataclasses.asdict(self)
