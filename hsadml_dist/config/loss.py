"""Settings of the hyperspherical loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss on the sphere.

    Attributes:
        name: softmax (NormFace), sphereface (A-Softmax), sphereface_r_v1, sphereface_r_v2, cosface, arcface,
            sphereface2 (type C) or adaface.
        margin: The loss's margin m; none: the default of its paper.
        scale: The factor on all cosines; none: the default of its paper, for sphereface the embedding's norm.
        grad_mode: exact: true derivatives; characteristic: the margin's offset is held constant.
        energy: Weight of the hyperspherical energy of the centres (MHE); 0: none.
        layout: Who holds the class centres: all ranks all of them, or each rank its share; auto: the one whose
            messages are smaller.
        backward: store: keep all cosines for the backward pass; stream: compute them twice; auto: keep what fits.
        memory_mib: What backward: auto may keep, in MiB.
        sample_rate: Share of the classes that a step compares with.
        lambda_base: A-Softmax annealing: lambda at step 0.
        lambda_gamma: A-Softmax annealing: decay per step.
        lambda_power: A-Softmax annealing: exponent of the decay.
        lambda_min: A-Softmax annealing: lower end of lambda.
        positive_weight: SphereFace2: share of the target class in the loss.
        sharpness: SphereFace2: exponent t of its similarity adjustment.
        norm_concentration: AdaFace: h, quality of a norm one deviation above the mean.
        norm_momentum: AdaFace: weight of a step's own mean and deviation in their running values.
    """

    name: Literal[
        "softmax", "sphereface", "sphereface_r_v1", "sphereface_r_v2", "cosface", "arcface", "sphereface2", "adaface"
    ] = setting("sphereface")
    margin: float | None = setting(None, ge=0)
    scale: float | None = setting(None, gt=0)
    grad_mode: Literal["exact", "characteristic"] = setting("exact")
    energy: float = setting(0.0, ge=0)
    layout: Literal["auto", "replicated", "sharded"] = setting("auto", on_resume="movable")
    backward: Literal["auto", "store", "stream"] = setting("auto", on_resume="movable")
    memory_mib: float = setting(1024.0, on_resume="movable", gt=0)
    sample_rate: float = setting(1.0, gt=0, le=1)
    lambda_base: float = setting(1000.0, ge=0)
    lambda_gamma: float = setting(0.12, ge=0)
    lambda_power: float = setting(1.0, ge=0)
    lambda_min: float = setting(5.0, ge=0)
    positive_weight: float = setting(0.7, gt=0, le=1)
    sharpness: float = setting(3.0, ge=1)
    norm_concentration: float = setting(0.333, gt=0)
    norm_momentum: float = setting(0.01, gt=0, le=1)
