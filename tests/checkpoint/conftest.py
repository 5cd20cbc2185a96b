"""A run folder with attempts, and training states that differ by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hsadml_dist.atomic import write_text
from hsadml_dist.checkpoint.layout import CheckpointName, TrainingProgress
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.run.folder import RunFolder


def make_state(step: int, seed: int | None = None, **changes: object) -> TrainingState:
    """Return a state with random tensors of ``seed``, by default the step."""
    generator = torch.Generator().manual_seed(step if seed is None else seed)
    weight = torch.randn(6, 2, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    groups = {
        "model": {"conv.weight": weight, "neck.bias": torch.randn(4, generator=generator)},
        "model_moments": {"neck.bias:step": torch.tensor(float(step)), "neck.bias:exp_avg": torch.zeros(4)},
        "centres": {"weight": torch.randn(3, 4, generator=generator, dtype=torch.float64)},
        "centres_moments": {},
    }
    facts = {"step": step, "consumed": 12 * step, "seed": 0, "fingerprint": "f", "data_digest": "d", "world_size": 1}
    return TrainingState(groups=groups, progress=TrainingProgress(**(facts | changes)))


class CheckpointRun:
    """A run folder, with short methods for the actions of attempts."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)

    def begin(self, number: int, parent: CheckpointName | None = None) -> None:
        """Start attempt ``number`` and choose its parent."""
        attempt = self.folder.attempt(number)
        attempt.path.mkdir(parents=True)
        text = "null" if parent is None else f'"{parent}"'
        write_text(attempt.parent, f'{{"checkpoint": {text}}}\n')

    def save(self, number: int, step: int) -> CheckpointName:
        """Save a checkpoint of ``step`` by attempt ``number``, even if a later one has started."""
        late = [a for a in self.folder.attempts() if a.number > number]
        for attempt in late:
            attempt.path.rename(attempt.path.with_name(f".{attempt.path.name}"))
        name = save_checkpoint(self.folder, self.folder.attempt(number), make_state(step))
        for attempt in late:
            attempt.path.with_name(f".{attempt.path.name}").rename(attempt.path)
        return name

    def path(self, name: CheckpointName) -> Path:
        """Return a checkpoint's folder."""
        return self.folder.checkpoints / str(name)


@pytest.fixture
def run(tmp_path: Path) -> CheckpointRun:
    """A run whose first attempt starts from scratch."""
    run = CheckpointRun(tmp_path / "run")
    run.begin(1)
    return run


@pytest.fixture
def state() -> Callable[..., TrainingState]:
    """Return the function that makes the state of a step."""
    return make_state
