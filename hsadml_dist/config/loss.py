"""Settings of the hyperspherical loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss on the sphere.

    Attributes:
        name: softmax (NormFace), sphereface (A-Softmax) or cosface.
        margin: The loss's margin m; none: the default of its paper.
        scale: The factor on all cosines; none: the default of its paper, for sphereface the embedding's norm.
        layout: Who holds the class centres; auto chooses.
        lambda_base: A-Softmax annealing: lambda at step 0.
        lambda_gamma: A-Softmax annealing: decay per step.
        lambda_power: A-Softmax annealing: exponent of the decay.
        lambda_min: A-Softmax annealing: lower end of lambda.
    """

    name: Literal["softmax", "sphereface", "cosface"] = setting("sphereface")
    margin: float | None = setting(None, least=0)
    scale: float | None = setting(None, above=0)
    layout: Literal["auto", "replicated"] = setting("auto", key_class="movable")
    lambda_base: float = setting(1000.0, least=0)
    lambda_gamma: float = setting(0.12, least=0)
    lambda_power: float = setting(1.0, least=0)
    lambda_min: float = setting(5.0, least=0)
