"""The family of margin losses: each a pair (psi, eta), a reducer, and its defaults.

The logit of the target class is ``scale * psi(cos)``, that of any other class ``scale * eta(cos)``. A loss adds nothing
but its pair and its defaults here; normalising, gathering, reducing and differentiating are written once elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from hsadml_dist.errors import ConfigError, Fault, did_you_mean
from hsadml_dist.losses import curves
from hsadml_dist.losses.curves import Curve, TargetCurve
from hsadml_dist.losses.reducers import BinaryReducer, Reducer, SoftmaxReducer

GradMode = Literal["exact", "characteristic"]


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A loss's pair at one step of the training.

    Attributes:
        psi: Curve of the target class.
        eta: Curve of the other classes.
        scale: Factor on all logits; None: the norm of each embedding.
    """

    psi: TargetCurve
    eta: Curve
    scale: float | None


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """A-Softmax's mixing weight: ``lambda = max(minimum, base * (1 + gamma * step) ** -power)``.

    The target curve is ``(lambda * cos + psi) / (1 + lambda)``: softmax at first, the full margin little by little.
    Source: Liu et al., CVPR 2017, section 4.1 and the authors' released training code (the defaults).
    """

    base: float = 1000.0
    gamma: float = 0.12
    power: float = 1.0
    minimum: float = 5.0

    def at(self, step: int) -> float:
        """Return lambda at the run's saved global step."""
        return max(self.minimum, self.base * (1 + self.gamma * step) ** -self.power)


@dataclass(frozen=True, kw_only=True)
class AdaptiveNorm:
    """How AdaFace reads a sample's quality off its embedding's norm.

    Attributes:
        concentration: h: a norm of one deviation above the mean has quality h.
        momentum: Weight of a step's own mean and deviation in their running values.
    """

    concentration: float = 0.333
    momentum: float = 0.01


@dataclass(frozen=True, kw_only=True)
class MarginLoss:
    """One loss of the family with its settings filled in.

    Attributes:
        at: Maps the run's global step to the pair in force.
        reducer: How a sample's logits become its loss.
        adaptive: Set where psi looks at the samples' qualities.
    """

    at: Callable[[int], Margin]
    reducer: Reducer = field(default_factory=SoftmaxReducer)
    adaptive: AdaptiveNorm | None = None


@dataclass(frozen=True, kw_only=True)
class MarginSettings:
    """What a user may choose of a loss; None: the default of its paper.

    Attributes:
        margin: m.
        scale: Factor on all cosines.
        grad_mode: exact: true derivatives; characteristic: the margin's offset is held constant.
        annealing: For sphereface.
        adaptive: For adaface.
        positive_weight: For sphereface2: the share of the target class.
        sharpness: For sphereface2: t, the exponent of its similarity adjustment.
    """

    margin: float | None = None
    scale: float | None = None
    grad_mode: GradMode = "exact"
    annealing: Annealing = field(default_factory=Annealing)
    adaptive: AdaptiveNorm = field(default_factory=AdaptiveNorm)
    positive_weight: float = 0.7
    sharpness: float = 3.0


def softmax(chosen: MarginSettings) -> MarginLoss:
    """NormFace: softmax over scaled cosines (s = 30). Source: Wang et al., ACM MM 2017."""
    if chosen.margin:
        raise ValueError("softmax has no margin; leave it out, or choose a loss that has one")
    return _fixed(curves.identity, curves.identity, chosen, scale=30.0)


def sphereface(chosen: MarginSettings) -> MarginLoss:
    """A-Softmax (m = 4, annealed, scale = norm of the embedding). Source: Liu et al., CVPR 2017."""
    psi = curves.multiplied_angle(_margin(chosen, 4, least=1))
    return MarginLoss(
        at=lambda step: Margin(
            psi=curves.for_target(curves.annealed(psi, chosen.annealing.at(step))),
            eta=curves.identity,
            scale=chosen.scale,
        )
    )


def sphereface_r_v1(chosen: MarginSettings) -> MarginLoss:
    """SphereFace-R v1 (m = 1.5, s = 30): the target's angle is multiplied. Source: Liu et al., TPAMI 2022."""
    return _fixed(curves.clipped_multiplied_angle(_margin(chosen, 1.5, least=1)), curves.identity, chosen, scale=30.0)


def sphereface_r_v2(chosen: MarginSettings) -> MarginLoss:
    """SphereFace-R v2 (m = 1.4, s = 60): the others' angles are divided. Source: Liu et al., TPAMI 2022."""
    return _fixed(curves.identity, curves.divided_angle(_margin(chosen, 1.4, least=1)), chosen, scale=60.0)


def cosface(chosen: MarginSettings) -> MarginLoss:
    """CosFace (m = 0.35, s = 64). Source: Wang et al., CVPR 2018."""
    return _fixed(curves.shifted(_margin(chosen, 0.35)), curves.identity, chosen, scale=64.0)


def arcface(chosen: MarginSettings) -> MarginLoss:
    """ArcFace (m = 0.5, s = 64). Source: Deng et al., CVPR 2019."""
    return _fixed(curves.added_angle(_margin(chosen, 0.5, below=math.pi)), curves.identity, chosen, scale=64.0)


def sphereface2(chosen: MarginSettings) -> MarginLoss:
    """SphereFace2 of type C (m = 0.4, s = 40): one binary decision a class. Source: Wen et al., ICLR 2022."""
    margin, scale = _margin(chosen, 0.4), 40.0 if chosen.scale is None else chosen.scale
    psi, eta = (curves.sharpened(chosen.sharpness, shift) for shift in (-margin, margin))
    # At the start all angles are near a right one: the bias balances both kinds of decision there.
    right_angle = 2 * 0.5**chosen.sharpness - 1
    reducer = BinaryReducer(
        positive_weight=chosen.positive_weight,
        scale=scale,
        start=(scale * (right_angle - margin), scale * (right_angle + margin)),
    )
    return replace(_fixed(psi, eta, chosen, scale=scale), reducer=reducer)


def adaface(chosen: MarginSettings) -> MarginLoss:
    """AdaFace (m = 0.4, h = 0.333, s = 64). Source: Kim et al., CVPR 2022."""
    psi = curves.norm_adaptive(_margin(chosen, 0.4))
    pair = Margin(psi=psi, eta=curves.identity, scale=64.0 if chosen.scale is None else chosen.scale)
    return MarginLoss(at=lambda step: pair, adaptive=chosen.adaptive)


LOSSES: dict[str, Callable[[MarginSettings], MarginLoss]] = {
    "softmax": softmax,
    "sphereface": sphereface,
    "sphereface_r_v1": sphereface_r_v1,
    "sphereface_r_v2": sphereface_r_v2,
    "cosface": cosface,
    "arcface": arcface,
    "sphereface2": sphereface2,
    "adaface": adaface,
}


def build_margin(name: str, chosen: MarginSettings | None = None) -> MarginLoss:
    """Return the named loss.

    Raises:
        ConfigError: Unknown name, or a margin that this loss cannot have.
    """
    chosen = chosen or MarginSettings()
    if name not in LOSSES:
        problem = f"{name!r} is unknown{did_you_mean(name, LOSSES)}; allowed: {', '.join(LOSSES)}"
        raise ConfigError([Fault(where="recipe", key="loss.name", problem=problem)])
    try:
        loss = LOSSES[name](chosen)
    except ValueError as fault:
        raise ConfigError([Fault(where="recipe", key="loss.margin", problem=str(fault))]) from fault
    return loss if chosen.grad_mode == "exact" else replace(loss, at=_detached(loss.at))


def _fixed(psi: Curve, eta: Curve, chosen: MarginSettings, *, scale: float) -> MarginLoss:
    """Return a loss whose pair is the same at every step."""
    pair = Margin(psi=curves.for_target(psi), eta=eta, scale=scale if chosen.scale is None else chosen.scale)
    return MarginLoss(at=lambda step: pair)


def _detached(at: Callable[[int], Margin]) -> Callable[[int], Margin]:
    def detached(step: int) -> Margin:
        pair = at(step)
        psi, eta = curves.characteristic_target(pair.psi), pair.eta
        return replace(pair, psi=psi, eta=eta if eta is curves.identity else curves.characteristic(eta))

    return detached


def _margin(chosen: MarginSettings, default: float, *, least: float = 0, below: float = math.inf) -> float:
    margin = default if chosen.margin is None else chosen.margin
    if least <= margin < below:
        return margin
    rule = f"must be at least {least:g}" + (f" and below {below:.4g}" if below < math.inf else "")
    raise ValueError(f"{margin:g} {rule}; leave it out for the paper's {default:g}")
