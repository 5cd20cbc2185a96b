"""What a checkpoint holds: groups of tensors by name, and the progress."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsadml_dist.checkpoint.layout import TrainingProgress

TensorGroup = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A training's whole state; there is no random state, since nothing draws from one.

    Attributes:
        groups: Group (``model``, ``model_moments``, ``centres``, ``centres_moments``; ``head``, ``head_moments`` where
            a loss has more than centres; ``model_ema``, ``model_ema_count`` where weights are averaged) to tensors by
            name.
        progress: Where the training stands.
        rows: Class ids of this rank's rows in the centres' groups; None: all of them.
    """

    groups: dict[str, TensorGroup]
    progress: TrainingProgress
    rows: range | None = None
