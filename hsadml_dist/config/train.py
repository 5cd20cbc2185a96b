"""Settings of the training itself: how long, how large a batch, which seed."""

from __future__ import annotations

from dataclasses import dataclass

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length and the seed of a training; exactly one of ``steps`` and ``epochs`` is given.

    Attributes:
        steps: Number of optimiser steps.
        epochs: Number of passes over the training samples; the last step may reach into the next pass.
        global_batch: Samples a step, over all ranks; the number of ranks divides it.
        seed: Seed of weights, order and augmentation.
    """

    steps: int | None = setting(None, key_class="extendable", least=1)
    epochs: int | None = setting(None, key_class="extendable", least=1)
    global_batch: int = setting(32, least=1)
    seed: int = setting(0, least=0)
