"""Margin losses as pairs (psi, eta) of functions of the cosine, with their derivatives.

The logit of the target class is ``scale * psi(cos)``, that of any other class ``scale * eta(cos)``. A loss adds nothing
but its pair and its defaults here; normalising, gathering, reducing and differentiating are written once elsewhere.

Legend of shapes: N samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hsadml_dist.errors import ConfigError, Fault, nearest

Curve = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps cosines of any shape to (value, derivative) of the same shape and dtype."""


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A loss's pair at one step of the training.

    Attributes:
        psi: Curve of the target class.
        eta: Curve of the other classes.
        scale: Factor on all logits; None: the norm of each embedding.
    """

    psi: Curve
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


MarginSchedule = Callable[[int], Margin]
"""Maps the run's global step to the pair in force."""


def identity(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (cos, 1): no margin."""
    return cos, torch.ones_like(cos)


def multiplied_angle(m: int) -> Curve:
    """Return SphereFace's ``psi(theta) = (-1)^k cos(m theta) - 2k`` for theta in ``[k pi/m, (k+1) pi/m]``.

    ``cos(m theta)`` is the Chebyshev polynomial ``T_m(cos)`` and its derivative ``m U_{m-1}(cos)``, so no arccosine
    is differentiated and the gradient is finite at cos = 1 and -1. Source: Liu et al., CVPR 2017, equations 6 and 7.
    """
    edges = [math.cos(k * math.pi / m) for k in range(1, m)]

    def psi(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = torch.zeros_like(cos)
        for edge in edges:
            k = k + (cos < edge)
        sign = 1 - 2 * (k % 2)
        first, second = _chebyshev(cos, m)
        return sign * first - 2 * k, sign * m * second

    return psi


def shifted(m: float) -> Curve:
    """Return CosFace's ``psi(cos) = cos - m``. Source: Wang et al., CVPR 2018, equation 4."""

    def psi(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return cos - m, torch.ones_like(cos)

    return psi


def annealed(psi: Curve, weight: float) -> Curve:
    """Return ``(weight * cos + psi(cos)) / (1 + weight)``."""

    def mixed(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = psi(cos)
        return (weight * cos + value) / (1 + weight), (weight + slope) / (1 + weight)

    return mixed


def softmax(margin: float | None, scale: float | None, annealing: Annealing) -> MarginSchedule:
    """Return NormFace: softmax over scaled cosines (s = 30). Source: Wang et al., ACM MM 2017."""
    if margin:
        raise ValueError("softmax has no margin; leave it out, or choose sphereface or cosface")
    fixed = Margin(psi=identity, eta=identity, scale=30.0 if scale is None else scale)
    return lambda step: fixed


def sphereface(margin: float | None, scale: float | None, annealing: Annealing) -> MarginSchedule:
    """Return A-Softmax (m = 4, annealed, scale = norm of the embedding). Source: Liu et al., CVPR 2017."""
    if margin is not None and not (margin >= 1 and float(margin).is_integer()):
        raise ValueError(f"sphereface's margin must be a whole number of at least 1, not {margin:g}")
    psi = multiplied_angle(4 if margin is None else int(margin))
    return lambda step: Margin(psi=annealed(psi, annealing.at(step)), eta=identity, scale=scale)


def cosface(margin: float | None, scale: float | None, annealing: Annealing) -> MarginSchedule:
    """Return CosFace (s = 64, m = 0.35). Source: Wang et al., CVPR 2018."""
    psi = shifted(0.35 if margin is None else margin)
    fixed = Margin(psi=psi, eta=identity, scale=64.0 if scale is None else scale)
    return lambda step: fixed


LOSSES: dict[str, Callable[[float | None, float | None, Annealing], MarginSchedule]] = {
    "softmax": softmax,
    "sphereface": sphereface,
    "cosface": cosface,
}


def build_margin(name: str, margin: float | None, scale: float | None, annealing: Annealing) -> MarginSchedule:
    """Return the named loss's pair as a function of the step.

    Raises:
        ConfigError: Unknown name, or a margin that this loss cannot have.
    """
    if name not in LOSSES:
        problem = f"{name!r} is unknown{nearest(name, LOSSES)}; allowed: {', '.join(LOSSES)}"
        raise ConfigError([Fault(where="recipe", key="loss.name", problem=problem)])
    try:
        return LOSSES[name](margin, scale, annealing)
    except ValueError as fault:
        raise ConfigError([Fault(where="recipe", key="loss.margin", problem=str(fault))]) from fault


def _chebyshev(x: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (T_m(x), U_{m-1}(x)) by their three-term recurrences."""
    t_before, t_now = torch.ones_like(x), x
    u_before, u_now = torch.zeros_like(x), torch.ones_like(x)
    for _ in range(m - 1):
        t_before, t_now = t_now, 2 * x * t_now - t_before
        u_before, u_now = u_now, 2 * x * u_now - u_before
    return t_now, u_now
