"""The losses that the tests go through, with all numbers, for the package and for the slow loop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hsadml_dist.losses.margins import Annealing, GradMode, MarginSettings
from tests.losses.slow_loop import Rule

STEP = 100
WEIGHT = 1000 / 13
"""A-Softmax's lambda at that step, with the default annealing."""

WHOLE = Annealing(base=0.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class LossCase:
    """One loss.

    Attributes:
        rule: Settings for the slow loop.
        chosen: Settings for the package.
    """

    rule: Rule
    chosen: MarginSettings = field(default_factory=MarginSettings)

    def settings(self, mode: GradMode) -> tuple[str, MarginSettings]:
        """Return the arguments of ``build_margin``."""
        return self.rule.name, replace(self.chosen, grad_mode=mode)

    def ruled(self, mode: GradMode) -> Rule:
        """Return the rule with a gradient mode."""
        return replace(self.rule, detached=mode == "characteristic")


def _whole(m: float, s: float | None = None) -> LossCase:
    chosen = MarginSettings(margin=m, scale=s, annealing=WHOLE)
    return LossCase(rule=Rule(name="sphereface", m=m, s=s), chosen=chosen)


CASES = {
    "softmax": LossCase(rule=Rule(name="softmax", s=30)),
    "sphereface": LossCase(rule=Rule(name="sphereface", m=4, weight=WEIGHT)),
    "sphereface m=1.5": _whole(1.5),
    "sphereface m=3 s=8": _whole(3, 8.0),
    "sphereface_r_v1": LossCase(rule=Rule(name="sphereface_r_v1", m=1.5, s=30)),
    "sphereface_r_v2": LossCase(rule=Rule(name="sphereface_r_v2", m=1.4, s=60)),
    "cosface": LossCase(rule=Rule(name="cosface", m=0.35, s=64)),
    "arcface": LossCase(rule=Rule(name="arcface", m=0.5, s=64)),
    "sphereface2": LossCase(rule=Rule(name="sphereface2", m=0.4, s=40)),
    "adaface": LossCase(rule=Rule(name="adaface", m=0.4, s=64)),
}
MORE_CASES = CASES | {
    "softmax s=5": LossCase(rule=Rule(name="softmax", s=5), chosen=MarginSettings(scale=5.0)),
    "sphereface m=1": _whole(1),
    "sphereface m=2": _whole(2),
    "sphereface m=4": _whole(4),
    "sphereface m=5": _whole(5),
    "sphereface m=1.7 s=64": _whole(1.7, 64.0),
    "cosface m=0": LossCase(rule=Rule(name="cosface", m=0, s=8), chosen=MarginSettings(margin=0.0, scale=8.0)),
    "arcface m=1.2": LossCase(rule=Rule(name="arcface", m=1.2, s=8), chosen=MarginSettings(margin=1.2, scale=8.0)),
}
"""Further numbers, tested in one process only."""

MODES: tuple[GradMode, ...] = ("exact", "characteristic")
NORMS = (6.0, 1.5)
"""Mean and deviation of the embedding norms for AdaFace in the tests."""
