"""The baseline of all comparisons: generated shards, and one undisturbed run for each number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hsadml_dist.data.index import load_index
from tests.chaos.evidence import BaselineResult
from tests.chaos.training_process import TrainingJob, hsadml

PATIENTS = 20


def build_shards(folder: Path) -> Path:
    """Write shards of generated patients, a few samples each."""
    arguments = ("--size", "128", "--samples-per-shard", "8", "--id-key", folder / "id.key")
    hsadml("shards", "build", "phantom", str(PATIENTS), "--out", folder / "shards", *arguments)
    return folder / "shards"


@dataclass
class Workspace:
    """The place of all trainings: shards, undisturbed runs, and new run folders.

    Attributes:
        folder: Folder of everything.
        shards: The shards of all runs.
    """

    folder: Path
    shards: Path
    _baselines: dict[int, BaselineResult] = field(default_factory=dict)
    _jobs: int = 0

    @staticmethod
    def prepare(folder: Path) -> Workspace:
        """Build the shards."""
        return Workspace(folder=folder, shards=build_shards(folder))

    def baseline(self, world: int) -> BaselineResult:
        """Return the result of the undisturbed run of ``world`` ranks, which is run once."""
        if world not in self._baselines:
            self._baselines[world] = self._run_baseline(world)
        return self._baselines[world]

    def job(self, world: int, workers: int, overrides: Sequence[str] = ()) -> TrainingJob:
        """Return a training in a run folder of its own."""
        self._jobs += 1
        folder = self.folder / f"job-{self._jobs:03d}"
        switches = folder / "switches"
        switches.mkdir(parents=True)
        return TrainingJob(
            run=folder / "run",
            shards=self.shards,
            world=world,
            workers=workers,
            overrides=tuple(overrides),
            switches=switches,
        )

    def _run_baseline(self, world: int) -> BaselineResult:
        job = TrainingJob(run=self.folder / f"baseline-{world}" / "run", shards=self.shards, world=world, workers=0)
        job.run.parent.mkdir()
        code, stderr = job.finish()
        assert code == 0, stderr
        digest = hsadml("checkpoint", "digest", job.run).strip()
        assert digest == job.digest(), "command and function must agree, because all else uses the function"
        (attempt,) = job.attempts()
        index = load_index(self.shards)
        keys = (index.samples[position].key for position in index.outside_folds([0]))
        return BaselineResult(digest=digest, ledger=dict(attempt.ledger), samples=frozenset(keys))
