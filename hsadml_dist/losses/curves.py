"""Margin curves over the cosine, for the target logit and for the other logits, each with its derivative.

Every curve returns its slope explicitly, so no arccosine is ever differentiated. Where a slope has a pole (at an angle
of 0 or pi), the sine is clamped to :func:`min_sine`, which keeps every gradient finite and changes nothing elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Curve = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps cosines of any shape to (value, slope) of the same shape and dtype."""

TargetCurve = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps cosines (N,) and sample qualities (N,), which only AdaFace uses, to (value, slope)."""


def for_target(curve: Curve) -> TargetCurve:
    """Return ``curve`` as a target curve that ignores the quality."""
    return lambda cos_N, quality_N: curve(cos_N)


def identity(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (cos, 1): no margin. The value is ``cos`` itself, not a copy."""
    return cos, _ones(cos)


def multiplied_angle(m: float) -> Curve:
    """Return SphereFace's ``psi = (-1)^k cos(m theta) - 2k`` for theta in ``[k pi/m, (k+1) pi/m]``, any real m >= 1.

    For an integer m, ``cos(m theta)`` is the Chebyshev polynomial ``T_m(cos)`` and its derivative ``m U_{m-1}(cos)``.
    Source: Liu et al., CVPR 2017, equations 6 and 7.
    """
    edges = [math.cos(k * math.pi / m) for k in range(1, math.ceil(m))]
    wave = _chebyshev_wave(int(m)) if float(m).is_integer() else _angle_wave(m)

    def psi(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = torch.zeros_like(cos)
        for edge in edges:
            k = k + (cos < edge)
        sign = 1 - 2 * (k % 2)
        value, slope = wave(cos)
        return sign * value - 2 * k, sign * slope

    return psi


def clipped_multiplied_angle(m: float) -> Curve:
    """Return SphereFace-R v1's ``cos(min(m theta, pi))``. Source: Liu et al., TPAMI 2022."""
    end, wave = math.cos(math.pi / m), _angle_wave(m)

    def psi(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = wave(cos)
        inside = cos > end
        return torch.where(inside, value, -1.0), slope * inside

    return psi


def divided_angle(m: float) -> Curve:
    """Return SphereFace-R v2's ``eta = cos(theta / m)``. Source: Liu et al., TPAMI 2022."""
    return _angle_wave(1 / m)


def added_angle(m: float) -> Curve:
    """Return ArcFace's ``cos(theta + m)``; where ``theta + m`` exceeds pi, ``cos + cos(m) - 1``.

    Beyond pi the cosine would rise again. Clamped to -1 it would be flat: embeddings opposite to all centres would get
    no gradient and, with few classes, a small loss; trainings did get stuck there. A straight line avoids this.
    Source: Deng et al., CVPR 2019, equation 3; their released code uses ``cos - m sin(m)``, which is discontinuous.
    """
    cos_m, sin_m, end = math.cos(m), math.sin(m), math.cos(math.pi - m)

    def psi(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sine = sine_of(cos)
        # Not computed from the angle: an arccosine near 1 loses half of the digits.
        value = cos * cos_m - sine * sin_m
        slope = cos_m + sin_m * cos / sine.clamp(min=min_sine(cos.dtype))
        inside = cos > end
        return torch.where(inside, value, cos - end - 1), torch.where(inside, slope, 1.0)

    return psi


def shifted(m: float) -> Curve:
    """Return CosFace's ``cos - m``. Source: Wang et al., CVPR 2018, equation 4."""
    return lambda cos: (cos - m, _ones(cos))


def sharpened(power: float, shift: float) -> Curve:
    """Return SphereFace2's ``g(cos) + shift`` with ``g = 2 ((cos + 1) / 2)^power - 1``.

    Source: Wen et al., ICLR 2022: similarity adjustment with t = ``power``, and the margin of type C.
    """

    def curve(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = (cos + 1) / 2
        rest = half ** (power - 1)
        # Constants shared by all logits must be exact: a common error does not average out.
        return half.mul_(rest).mul_(2).sub_(1).add_(shift), rest.mul_(power)

    return curve


def norm_adaptive(m: float) -> TargetCurve:
    """Return AdaFace's ``cos(theta - m q) - (m + m q)`` for samples of quality q in [-1, 1].

    The angle plus margin is clamped to [0, pi]. Source: Kim et al., CVPR 2022, equations 14 to 16.
    """

    def psi(cos_N: torch.Tensor, quality_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sine_N = sine_of(cos_N)
        theta_N, turn_N = torch.atan2(sine_N, cos_N), -m * quality_N
        inside_N = (theta_N + turn_N >= 0) & (theta_N + turn_N <= math.pi)
        value_N = torch.cos((theta_N + turn_N).clamp(0, math.pi))
        slope_N = turn_N.cos() + turn_N.sin() * cos_N / sine_N.clamp(min=min_sine(cos_N.dtype))
        return value_N - m - m * quality_N, slope_N * inside_N

    return psi


def annealed(psi: Curve, weight: float) -> Curve:
    """Return ``(weight * cos + psi(cos)) / (1 + weight)``."""

    def mixed(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = psi(cos)
        return (weight * cos + value) / (1 + weight), (weight + slope) / (1 + weight)

    return mixed


def characteristic(curve: Curve) -> Curve:
    """Return the curve with slope 1 everywhere: the margin shifts the value but not the gradient.

    Source: Liu et al., TPAMI 2022, the characteristic gradient detachment.
    """
    return lambda cos: (curve(cos)[0], _ones(cos))


def characteristic_target(psi: TargetCurve) -> TargetCurve:
    """Return a target curve with slope 1 everywhere, see :func:`characteristic`."""
    return lambda cos_N, quality_N: (psi(cos_N, quality_N)[0], _ones(cos_N))


def sine_of(cos: torch.Tensor) -> torch.Tensor:
    """Return the non-negative sine of the angle with this cosine."""
    return ((1 - cos) * (1 + cos)).clamp(min=0).sqrt()


def min_sine(dtype: torch.dtype) -> float:
    """Return the smallest sine that a cosine of this dtype still resolves: the square root of its machine epsilon."""
    return math.sqrt(torch.finfo(dtype).eps)


def _ones(cos: torch.Tensor) -> torch.Tensor:
    return cos.new_ones(()).expand_as(cos)  # a view: allocates no memory


def _angle_wave(m: float) -> Curve:
    """Return ``cos(m theta)`` for a real m, computed from the angle."""

    def wave(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sine = sine_of(cos)
        theta = torch.atan2(sine, cos).mul_(m)
        return theta.cos(), theta.sin_().mul_(m).div_(sine.clamp_(min=min_sine(cos.dtype)))

    return wave


def _chebyshev_wave(m: int) -> Curve:
    """Return the Chebyshev polynomials ``(T_m, m U_{m-1})`` by their three-term recurrences."""

    def wave(cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t_before, t_now = torch.ones_like(cos), cos
        u_before, u_now = torch.zeros_like(cos), torch.ones_like(cos)
        for _ in range(m - 1):
            t_before, t_now = t_now, 2 * cos * t_now - t_before
            u_before, u_now = u_now, 2 * cos * u_now - u_before
        return t_now, m * u_now

    return wave
