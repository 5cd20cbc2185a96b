"""How long a run takes to save when it is told to stop, as far as its folder shows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from hsadml_dist.checkpoint.layout import COMMIT, list_checkpoints
from hsadml_dist.launch.doctor.disk import DiskSpeed
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.merged import merged_metrics

RECENT_STEPS = 200
STEPS_AFTER_NOTICE = 2
"""The ranks agree to stop within two steps of the notice."""
SAVES_AFTER_NOTICE = 2
"""The save that may be under way, and the last one."""


@dataclass(frozen=True, kw_only=True)
class SaveCost:
    """What a run's folder shows.

    Attributes:
        size: Bytes of its newest checkpoint.
        kept: Bytes of all checkpoints that are there.
        step_seconds: Median time of its last steps.
    """

    size: int
    kept: int
    step_seconds: float

    def stop_seconds(self, speed: DiskSpeed) -> float:
        """Return about how long the run goes on after a notice, at this speed of the file system."""
        return STEPS_AFTER_NOTICE * self.step_seconds + SAVES_AFTER_NOTICE * speed.save_seconds(self.size)


def read_save_cost(run: RunFolder) -> SaveCost | None:
    """Return what the folder shows; None where no checkpoint or no step is there yet."""
    folders = [run.checkpoints / str(name) for name in list_checkpoints(run)]
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in folders if (path / COMMIT).exists()]
    steps = [row["step_seconds"] for row in merged_metrics(run.path)[-RECENT_STEPS:]]
    if not sizes or not steps:
        return None
    return SaveCost(size=sizes[-1], kept=sum(sizes), step_seconds=statistics.median(steps))
