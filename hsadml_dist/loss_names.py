"""Names of the margin losses and a rule for their settings, without torch: shared by recipes, jobs and losses."""

from typing import Literal

LossName = Literal[
    "softmax", "sphereface", "sphereface_r_v1", "sphereface_r_v2", "cosface", "arcface", "sphereface2", "adaface"
]


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
