"""A run folder with attempts, and states that tell each other apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hsadml_dist.checkpoint.layout import CheckpointName, TrainingProgress
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.run.folder import RunFolder, replace_text


def make_state(step: int, seed: int | None = None, **changes: object) -> TrainingState:
    """Return a state whose tensors are drawn from ``seed``, by default from the step."""
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
    """A run folder, and short words for what attempts do in it."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)

    def begin(self, number: int, parent: CheckpointName | None = None) -> None:
        """Attempt ``number`` starts and chooses its parent."""
        attempt = self.folder.attempt(number)
        attempt.path.mkdir(parents=True)
        text = "null" if parent is None else f'"{parent}"'
        replace_text(attempt.parent, f'{{"checkpoint": {text}}}\n')

    def save(self, number: int, step: int) -> CheckpointName:
        """Attempt ``number`` writes its checkpoint of ``step``, though a later one may have started."""
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
    """A run whose first attempt has begun from nothing."""
    run = CheckpointRun(tmp_path / "run")
    run.begin(1)
    return run


@pytest.fixture
def state() -> Callable[..., TrainingState]:
    """Make a state of a step."""
    return make_state
