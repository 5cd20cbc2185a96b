"""Settings of the training itself: how long, how large a batch, which seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length and the seed of a training; exactly one of ``steps`` and ``epochs`` is given.

    Attributes:
        steps: Number of optimiser steps.
        epochs: Number of passes over the training samples; the last step may reach into the next pass.
        global_batch: Samples a step, over all ranks; the number of ranks divides it.
        seed: Seed of weights, order and augmentation.
        on_nonfinite: What a loss or gradient that is not finite does: stop: ends the run with one line; skip: the step
            changes nothing and the next one follows. Movable, like the limit: a run that reaches its end is the same
            run under either, since only skipping gets past such a step.
        skip_limit: Steps in a row that may be skipped; one more ends the run.
    """

    steps: int | None = setting(None, on_resume="extendable", ge=1)
    epochs: int | None = setting(None, on_resume="extendable", ge=1)
    global_batch: int = setting(32, ge=1)
    seed: int = setting(0, ge=0)
    on_nonfinite: Literal["stop", "skip"] = setting("stop", on_resume="movable")
    skip_limit: int = setting(10, on_resume="movable", ge=1)
