"""The generated patients' build: what a person's slices have in common, drawn from (seed, patient)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.record import PLANES

CLASSES = ("meningioma", "glioma", "pituitary")
MOST_SLICES = 12
WAVES = 4


@dataclass(frozen=True, kw_only=True)
class Person:
    """All that the slices of one generated person share. Lengths in units of half the image's side.

    Attributes:
        seed: The phantom's seed.
        patient: The person's number.
        class_name: The tumour.
        planes: Each slice's plane.
        exams: Each slice's exam, 0 or 1.
        depths: Each slice's distance from the middle of head and tumour, -1 ... 1.
        scale: Stretch of the head along (x, y).
        centre: The head's middle (x, y).
        tilt: The head's rotation in radians.
        warp: (waves, 5): smooth deformation.
        bias: (4,): smooth gain over the image, as of a receiving coil.
        grey: Brightness of grey matter.
        white: Brightness of white matter.
        scalp: Brightness of the skin's fat.
        noise: Standard deviation of the noise in each of two channels.
        gamma: Exponent of the brightness: the scan's contrast.
        sulci: (number of folds, phase, depth).
        ventricle: Size of the ventricles, 1 is usual.
        lesion: (angle in radians, distance from the centre as a part of the brain's radius, radius).
        enhancement: Brightness of the tumour's enhancing part.
        ragged: (4,): phases of the tumour's outline.
        core: Radius of a glioma's dark core as a part of its own.
    """

    seed: int
    patient: int
    class_name: str
    planes: tuple[str, ...]
    exams: tuple[int, ...]
    depths: tuple[float, ...]
    scale: tuple[float, float]
    centre: tuple[float, float]
    tilt: float
    warp: np.ndarray
    bias: np.ndarray
    grey: float
    white: float
    scalp: float
    noise: float
    gamma: float
    sulci: tuple[float, float, float]
    ventricle: float
    lesion: tuple[float, float, float]
    enhancement: float
    ragged: np.ndarray
    core: float


@lru_cache(maxsize=64)
def make_person(seed: int, patient: int) -> Person:
    """Draw up patient number ``patient``: the same for the same arguments; classes take turns."""
    rng = np.random.default_rng([seed, patient])
    class_name = CLASSES[patient % len(CLASSES)]
    count = int(rng.integers(1, MOST_SLICES + 1))
    planes = sorted(rng.choice(PLANES, size=count, p=_weights(rng)).tolist())
    second = int(rng.integers(1, count + 1)) if rng.random() < 0.2 else count
    return Person(
        seed=seed,
        patient=patient,
        class_name=class_name,
        planes=tuple(planes),
        exams=tuple(int(number >= second) for number in range(count)),
        depths=tuple(np.clip(rng.normal(0, 0.4, count), -0.85, 0.85).tolist()),
        scale=(float(rng.normal(1.0, 0.025)), float(rng.normal(1.0, 0.025))),
        centre=(float(rng.normal(0, 0.012)), float(rng.normal(0, 0.012))),
        tilt=float(rng.normal(0, 0.04)),
        warp=rng.normal(0, 1, (WAVES, 5)).astype(np.float32),
        bias=rng.normal(0, 1, 4).astype(np.float32),
        grey=float(rng.uniform(0.32, 0.40)),
        white=float(rng.uniform(0.45, 0.55)),
        scalp=float(rng.uniform(0.50, 0.70)),
        noise=float(rng.uniform(0.010, 0.030)),
        gamma=float(rng.uniform(0.85, 1.2)),
        sulci=(float(rng.integers(13, 22)), float(rng.uniform(0, 6.3)), float(rng.uniform(0.5, 1.0))),
        ventricle=float(rng.uniform(0.75, 1.3)),
        lesion=_lesion(class_name, rng),
        enhancement=float(rng.uniform(0.78, 0.98)),
        ragged=rng.uniform(0, 2 * np.pi, 4).astype(np.float32),
        core=float(rng.uniform(0.35, 0.75)),
    )


def _weights(rng: np.random.Generator) -> np.ndarray:
    """Most persons were imaged in one or two planes."""
    weights = rng.dirichlet([0.4, 0.4, 0.4]) + 1e-9
    return weights / weights.sum()


def _lesion(class_name: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return (angle in radians, distance from the centre as a part of the brain's radius, radius)."""
    angle = float(rng.uniform(0, 2 * np.pi))
    if class_name == "meningioma":
        return angle, 1.0, float(rng.uniform(0.10, 0.21))
    if class_name == "glioma":
        return angle, float(rng.uniform(0.30, 0.62)), float(rng.uniform(0.12, 0.24))
    return angle, 0.0, float(rng.uniform(0.08, 0.14))
