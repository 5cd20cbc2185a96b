"""Settings of the optimiser and of the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser of backbone and centres, and its schedule: a pure function of the step.

    Attributes:
        name: adamw or sgd.
        lr: Peak learning rate.
        head_lr_factor: The centres' learning rate, as a multiple of ``lr``.
        weight_decay: Decoupled decay (AdamW) or L2 (SGD) of matrices and kernels; centres, norms and biases have none.
        momentum: Momentum of SGD.
        beta1: First moment's decay of AdamW.
        beta2: Second moment's decay of AdamW.
        schedule: cosine down to ``lr_end``, or constant; both after the warm-up.
        warmup_steps: Steps of linear rise from 0 at the start.
        lr_end: Last learning rate of the cosine, as a share of ``lr``.
        layer_decay: Factor on the learning rate for each layer further away from the embedding; none: all learn alike.
        ema_decay: Share that the running average of the backbone's weights keeps at each step, and the average is what
            is judged; none: no average.
    """

    name: Literal["adamw", "sgd"] = setting("adamw")
    lr: float = setting(2e-3, gt=0)
    head_lr_factor: float = setting(1.0, gt=0)
    weight_decay: float = setting(0.05, ge=0)
    momentum: float = setting(0.9, ge=0, le=1)
    beta1: float = setting(0.9, ge=0, le=1)
    beta2: float = setting(0.999, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = setting("cosine")
    warmup_steps: int = setting(0, ge=0)
    lr_end: float = setting(0.01, ge=0, le=1)
    layer_decay: float | None = setting(None, gt=0, le=1, added_later=True)
    ema_decay: float | None = setting(None, gt=0, lt=1, added_later=True)
