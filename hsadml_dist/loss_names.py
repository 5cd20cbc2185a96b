"""Names of the margin losses, without torch: shared by the recipe setting ``loss.name`` and losses/margins.py."""

from typing import Literal

LossName = Literal[
    "softmax", "sphereface", "sphereface_r_v1", "sphereface_r_v2", "cosface", "arcface", "sphereface2", "adaface"
]
