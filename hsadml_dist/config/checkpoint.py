"""Settings of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept.

    Attributes:
        every: Steps between two checkpoints; one is also written at a stop and at the end.
        background: Whether the steps go on while a checkpoint is written; costs the state's size in memory once more.
            The checkpoint of a stop and the last one are always waited for.
        keep: Newest checkpoints that are kept.
        keep_every: Checkpoints at multiples of this step are kept for good; none: only the newest.
    """

    every: int = setting(200, on_resume="movable", ge=1)
    background: bool = setting(True, on_resume="movable")
    keep: int = setting(2, on_resume="movable", ge=1)
    keep_every: int | None = setting(None, on_resume="movable", ge=1)
