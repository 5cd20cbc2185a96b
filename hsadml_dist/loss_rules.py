"""Names of the margin losses and the rules for their settings, without torch: shared by recipes, jobs and losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LossName = Literal[
    "softmax", "sphereface", "sphereface_r_v1", "sphereface_r_v2", "cosface", "arcface", "sphereface2", "adaface"
]


@dataclass(frozen=True, kw_only=True)
class MarginRange:
    """The margins that a loss accepts, and the default of its paper."""

    default: float
    at_least: float = 0
    below: float = math.inf


MARGINS: Mapping[str, MarginRange] = {
    "sphereface": MarginRange(default=4, at_least=1),
    "sphereface_r_v1": MarginRange(default=1.5, at_least=1),
    "sphereface_r_v2": MarginRange(default=1.4, at_least=1),
    "cosface": MarginRange(default=0.35),
    "arcface": MarginRange(default=0.5, below=math.pi),
    "sphereface2": MarginRange(default=0.4),
    "adaface": MarginRange(default=0.4),
}
"""By name; softmax has no margin."""


def margin_problem(name: str, margin: float | None) -> str | None:
    """Return in one line why a loss does not accept a margin, or None if it does; None means the default."""
    if margin is None or (name not in MARGINS and margin == 0):
        return None
    if name not in MARGINS:
        return f"{margin:g}: {name} has no margin; omit it, or choose another loss"
    allowed = MARGINS[name]
    if allowed.at_least <= margin < allowed.below:
        return None
    rule = f"must be at least {allowed.at_least:g}" + (f" and below {allowed.below:.4g}" * math.isfinite(allowed.below))
    return f"{margin:g} {rule}; omit it for the default of the paper, {allowed.default:g}"


def sample_rate_problem(rate: float, classes: int) -> str | None:
    """Return in one line why ``loss.sample_rate`` is too low for a number of classes, or None if it is not.

    In a step that compares with no class, every loss and every gradient is 0.
    """
    if rate * classes >= 1:
        return None
    return (
        f"{rate:g} of {classes} classes is less than one class per step, so most steps would learn nothing; "
        f"allowed: {1 / classes:.3g} to 1, for so few classes best 1"
    )
