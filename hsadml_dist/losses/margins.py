"""The family of margin losses: each is a pair of curves (psi, eta), a reducer, and default settings.

The logit of the target class is ``scale * psi(cos)``, that of every other class ``scale * eta(cos)``. A new loss adds
only its curves and defaults here; normalisation, communication, reduction and gradients are shared by all losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from hsadml_dist.errors import ConfigError, Fault, did_you_mean
from hsadml_dist.loss_rules import MARGINS, margin_problem
from hsadml_dist.losses import curves
from hsadml_dist.losses.curves import Curve, TargetCurve
from hsadml_dist.losses.reducers import BinaryReducer, Reducer, SoftmaxReducer

GradMode = Literal["exact", "characteristic"]


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Curves and scale of a loss at one step.

    Attributes:
        psi: Curve of the target class.
        eta: Curve of the other classes.
        scale: Factor on all logits; None means the norm of each embedding.
    """

    psi: TargetCurve
    eta: Curve
    scale: float | None


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """Mixing weight of A-Softmax: ``lambda = max(minimum, base * (1 + gamma * step) ** -power)``.

    The target curve is ``(lambda * cos + psi) / (1 + lambda)``: almost softmax at first, then more and more margin.
    Source: Liu et al., CVPR 2017, section 4.1 and the authors' released training code (the defaults).
    """

    base: float = 1000.0
    gamma: float = 0.12
    power: float = 1.0
    minimum: float = 5.0

    def at(self, step: int) -> float:
        """Return lambda at a global step of the run."""
        return max(self.minimum, self.base * (1 + self.gamma * step) ** -self.power)


@dataclass(frozen=True, kw_only=True)
class AdaptiveNorm:
    """How AdaFace computes the quality of a sample from the norm of its embedding.

    Attributes:
        concentration: h; a norm of one standard deviation above the mean has quality h.
        momentum: Weight of the mean and deviation of a step in the running values.
    """

    concentration: float = 0.333
    momentum: float = 0.01


@dataclass(frozen=True, kw_only=True)
class MarginLoss:
    """One loss of the family, with its settings applied.

    Attributes:
        at: Maps the global step of the run to its curves and scale.
        reducer: Turns the logits of a sample into its loss, and those of a new image into probabilities.
        similarity: Curve of all classes at inference, where there is no margin.
        adaptive: Set if psi depends on the quality of the samples.
        origin: Arguments of :func:`build_margin` that give this loss.
    """

    at: Callable[[int], Margin]
    reducer: Reducer = field(default_factory=SoftmaxReducer)
    similarity: Curve = curves.identity
    adaptive: AdaptiveNorm | None = None
    origin: tuple[str, MarginSettings] | tuple[()] = ()

    def __reduce__(self) -> tuple[Callable[..., MarginLoss], tuple[object, ...]]:
        """Pickle the loss as a call of :func:`build_margin`, because its curves are closures."""
        return build_margin, self.origin


@dataclass(frozen=True, kw_only=True)
class MarginSettings:
    """Settings of a loss; None means the default of its paper.

    Attributes:
        margin: m.
        scale: Factor on all cosines.
        grad_mode: exact: true derivatives; characteristic: the offset of the margin is treated as a constant.
        annealing: Of sphereface.
        adaptive: Of adaface.
        positive_weight: Of sphereface2: weight of the target class.
        sharpness: Of sphereface2: t, the exponent of its similarity adjustment.
    """

    margin: float | None = None
    scale: float | None = None
    grad_mode: GradMode = "exact"
    annealing: Annealing = field(default_factory=Annealing)
    adaptive: AdaptiveNorm = field(default_factory=AdaptiveNorm)
    positive_weight: float = 0.7
    sharpness: float = 3.0


def softmax(settings: MarginSettings) -> MarginLoss:
    """NormFace: softmax over scaled cosines (s = 30). Source: Wang et al., ACM MM 2017."""
    return _fixed(curves.identity, curves.identity, settings, scale=30.0)


def sphereface(settings: MarginSettings) -> MarginLoss:
    """A-Softmax (m = 4, annealed, scale = norm of the embedding). Source: Liu et al., CVPR 2017."""
    psi = curves.multiplied_angle(_margin("sphereface", settings))

    def at(step: int) -> Margin:
        annealed = curves.for_target(curves.annealed(psi, settings.annealing.at(step)))
        return Margin(psi=annealed, eta=curves.identity, scale=settings.scale)

    return MarginLoss(at=at)


def sphereface_r_v1(settings: MarginSettings) -> MarginLoss:
    """SphereFace-R v1 (m = 1.5, s = 30): the target angle is multiplied. Source: Liu et al., TPAMI 2022."""
    psi = curves.clipped_multiplied_angle(_margin("sphereface_r_v1", settings))
    return _fixed(psi, curves.identity, settings, scale=30.0)


def sphereface_r_v2(settings: MarginSettings) -> MarginLoss:
    """SphereFace-R v2 (m = 1.4, s = 60): the other angles are divided. Source: Liu et al., TPAMI 2022."""
    return _fixed(curves.identity, curves.divided_angle(_margin("sphereface_r_v2", settings)), settings, scale=60.0)


def cosface(settings: MarginSettings) -> MarginLoss:
    """CosFace (m = 0.35, s = 64). Source: Wang et al., CVPR 2018."""
    return _fixed(curves.shifted(_margin("cosface", settings)), curves.identity, settings, scale=64.0)


def arcface(settings: MarginSettings) -> MarginLoss:
    """ArcFace (m = 0.5, s = 64). Source: Deng et al., CVPR 2019."""
    return _fixed(curves.added_angle(_margin("arcface", settings)), curves.identity, settings, scale=64.0)


def sphereface2(settings: MarginSettings) -> MarginLoss:
    """SphereFace2, type C (m = 0.4, s = 40): one binary classification per class. Source: Wen et al., ICLR 2022."""
    margin, scale = _margin("sphereface2", settings), 40.0 if settings.scale is None else settings.scale
    psi, eta = (curves.sharpened(settings.sharpness, shift) for shift in (-margin, margin))
    # Angles are near 90 degrees at first: the initial bias balances target and other classes there.
    right_angle = 2 * 0.5**settings.sharpness - 1
    reducer = BinaryReducer(
        positive_weight=settings.positive_weight,
        scale=scale,
        start=(scale * (right_angle - margin), scale * (right_angle + margin)),
    )
    similarity = curves.sharpened(settings.sharpness, 0.0)
    return replace(_fixed(psi, eta, settings, scale=scale), reducer=reducer, similarity=similarity)


def adaface(settings: MarginSettings) -> MarginLoss:
    """AdaFace (m = 0.4, h = 0.333, s = 64). Source: Kim et al., CVPR 2022."""
    psi = curves.norm_adaptive(_margin("adaface", settings))
    pair = Margin(psi=psi, eta=curves.identity, scale=64.0 if settings.scale is None else settings.scale)
    return MarginLoss(at=lambda step: pair, adaptive=settings.adaptive)


LOSSES: dict[str, Callable[[MarginSettings], MarginLoss]] = {
    loss.__name__: loss
    for loss in (softmax, sphereface, sphereface_r_v1, sphereface_r_v2, cosface, arcface, sphereface2, adaface)
}
"""All losses; the names are those of :data:`hsadml_dist.loss_rules.LossName`."""


def build_margin(name: str, settings: MarginSettings | None = None) -> MarginLoss:
    """Return the named loss.

    Raises:
        ConfigError: The name is unknown, or the loss does not accept this margin.
    """
    settings = settings or MarginSettings()
    if name not in LOSSES:
        unknown = f"{name!r} is unknown{did_you_mean(name, LOSSES)}; allowed: {', '.join(LOSSES)}"
        raise ConfigError([Fault(where="recipe", key="loss.name", problem=unknown)])
    problem = margin_problem(name, settings.margin)
    if problem is not None:
        raise ConfigError([Fault(where="recipe", key="loss.margin", problem=problem)])
    loss = LOSSES[name](settings)
    at = loss.at if settings.grad_mode == "exact" else _detached(loss.at)
    return replace(loss, at=at, origin=(name, settings))


def _fixed(psi: Curve, eta: Curve, settings: MarginSettings, *, scale: float) -> MarginLoss:
    """Return a loss with the same curves at every step."""
    pair = Margin(psi=curves.for_target(psi), eta=eta, scale=scale if settings.scale is None else settings.scale)
    return MarginLoss(at=lambda step: pair)


def _detached(at: Callable[[int], Margin]) -> Callable[[int], Margin]:
    def detached(step: int) -> Margin:
        pair = at(step)
        psi, eta = curves.characteristic_target(pair.psi), pair.eta
        return replace(pair, psi=psi, eta=eta if eta is curves.identity else curves.characteristic(eta))

    return detached


def _margin(name: str, settings: MarginSettings) -> float:
    return MARGINS[name].default if settings.margin is None else settings.margin
