"""Generated patients: class, site, exams and planes, and the pose and shape of the head in the scanner.

Everything follows from (seed, patient) or (seed, patient, exam) by numpy's generator alone: neither the template nor
scipy is needed to list the slices of a million patients.

Scanner coordinates: x to the patient's right, y to the front, z up, (0, 0, 0) at the centre of the field of view.
Shapes in names: ``_3P`` coordinates of P points; ``_W3`` one row per wave.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.source import PLANES
from hsadml_dist.shards.sources.phantom.scanner import SITES

CLASSES = ("meningioma", "glioma", "pituitary")
MOST_SLICES = 38
USUAL_SLICES = 6.6
"""Median number of slices a patient; their logarithm spreads by SLICE_SPREAD."""
SLICE_SPREAD = 0.65
SECOND_EXAMS = 0.2
"""Share of patients who come back for a second exam."""
PLANES_A_PERSON = (0.5, 0.35, 0.15)
"""Share of patients imaged in one, two and three planes."""


class Stream(enum.IntEnum):
    """One random stream a purpose, so that a change in one leaves the others as they were. Never 0: numpy pads by 0."""

    PERSON = 1
    LESION = 2
    POSE = 3
    CONTRAST = 4
    SLICE = 5


def stream(seed: int, patient: int, purpose: Stream, number: int = 0) -> np.random.Generator:
    """Return the generator of one purpose."""
    return np.random.default_rng([seed, patient, purpose, number])


@dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """What the listing needs of one generated person.

    Attributes:
        seed: The phantom's seed.
        patient: The person's number.
        class_name: The tumour.
        site: Where the person was scanned, an index of ``SITES``: drawn without looking at the class.
        planes: Each slice's plane.
        exams: Each slice's exam, 0 or 1.
    """

    seed: int
    patient: int
    class_name: str
    site: int
    planes: tuple[str, ...]
    exams: tuple[int, ...]

    def place_in_series(self, number: int) -> int:
        """Return the place of slice ``number`` among the slices of its exam and plane."""
        kinds = list(zip(self.exams, self.planes, strict=True))
        return kinds[:number].count(kinds[number])

    def stream(self, purpose: Stream, number: int = 0) -> np.random.Generator:
        """Return this person's generator of one purpose."""
        return stream(self.seed, self.patient, purpose, number)


@lru_cache(maxsize=64)
def make_patient(seed: int, patient: int) -> PhantomPatient:
    """Draw up patient number ``patient``: the same for the same arguments; classes take turns."""
    rng = stream(seed, patient, Stream.PERSON)
    site = int(rng.integers(len(SITES)))
    count = int(np.clip(np.rint(USUAL_SLICES * np.exp(SLICE_SPREAD * rng.standard_normal())), 1, MOST_SLICES))
    second = count - int(rng.integers(1, count)) if count > 1 and rng.random() < SECOND_EXAMS else count
    kept = rng.permutation(len(PLANES))[: 1 + int(rng.choice(3, p=PLANES_A_PERSON))]
    planes = [PLANES[int(plane)] for plane in rng.choice(kept, size=count)]
    return PhantomPatient(
        seed=seed,
        patient=patient,
        class_name=CLASSES[patient % len(CLASSES)],
        site=site,
        planes=(*sorted(planes[:second]), *sorted(planes[second:])),
        exams=tuple(int(number >= second) for number in range(count)),
    )


WAVES = 9
WAVE_MM = 1.6
WAVELENGTHS_MM = (110, 230)
CENTRE_MM = (0.0, -17.0, -18.0)
"""The template's place in the middle of the field of view."""
VENTRICLES_MM = (0.0, -17.0, 12.0)
VENTRICLES_REACH_MM = 30.0
ROUNDS = 5
"""Fixed-point rounds of the inverse; the warp's slope is below a half, so that the error falls below 0.1 mm."""
AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
assert set(AXES) == set(PLANES)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Turn, stretch and shift (the lie in the scanner), then a few smooth waves (the person's build).

    Attributes:
        turn: (3, 3): rotation and stretch, scanner to head.
        shift: (3,): the head's place at the scanner's (0, 0, 0), in millimetres.
        direction_W3: Radians a millimetre.
        push_W3: Millimetres.
        phase_W: Radians.
        swell: How much larger the ventricles are than the template's, as a part.
    """

    turn: np.ndarray
    shift: np.ndarray
    direction_W3: np.ndarray
    push_W3: np.ndarray
    phase_W: np.ndarray
    swell: float

    def to_template(self, scanner_3P: np.ndarray) -> np.ndarray:
        """Return the template's place of each place in the scanner."""
        head_3P = sum(self.turn[:, k, None] * scanner_3P[k] for k in range(3)) + self.shift[:, None]
        return np.asarray(head_3P + self._wave(head_3P), np.float32)

    def to_scanner(self, template_3P: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_template`, to about 0.1 mm."""
        head_3P = template_3P
        for _ in range(ROUNDS):
            head_3P = template_3P - self._wave(head_3P)
        back = np.linalg.inv(self.turn)
        return np.asarray(sum(back[:, k, None] * (head_3P[k] - self.shift[k]) for k in range(3)), np.float32)

    def ventricles(self, template_3P: np.ndarray) -> np.ndarray:
        """Draw places towards the ventricles, so that these look larger (or smaller)."""
        away_3P = template_3P - np.array(VENTRICLES_MM, np.float32)[:, None]
        part = np.exp(-(away_3P**2).sum(0) / (2 * VENTRICLES_REACH_MM**2))
        return np.asarray(template_3P - np.float32(self.swell) * part * away_3P, np.float32)

    def _wave(self, head_3P: np.ndarray) -> np.ndarray:
        pushed_3P = np.zeros_like(head_3P)
        for direction, push, phase in zip(self.direction_W3, self.push_W3, self.phase_W, strict=True):
            along = direction[0] * head_3P[0] + direction[1] * head_3P[1] + direction[2] * head_3P[2]
            pushed_3P += push[:, None] * np.sin(along + phase)
        return pushed_3P


@lru_cache(maxsize=64)
def make_pose(person: PhantomPatient, exam: int) -> Pose:
    """Draw a person's build, and the lie in one exam: a second exam has its own small differences."""
    rng = person.stream(Stream.POSE)
    stretch = rng.normal(1.06, 0.035) * rng.normal(1, 0.025, 3)
    angles = rng.normal(0, 1, 3) * np.radians([6.0, 2.5, 3.0])
    centre = rng.normal(0, 1, 3) * np.array([3.0, 4.0, 5.0])
    direction_W3 = rng.normal(0, 1, (WAVES, 3))
    direction_W3 /= np.linalg.norm(direction_W3, axis=1, keepdims=True)
    direction_W3 *= 2 * np.pi / rng.uniform(*WAVELENGTHS_MM, (WAVES, 1))
    push_W3, phase_W = rng.normal(0, WAVE_MM, (WAVES, 3)), rng.uniform(0, 2 * np.pi, WAVES)
    swell = float(rng.uniform(-0.25, 0.4))
    again = person.stream(Stream.POSE, 1 + exam)
    angles += again.normal(0, 1, 3) * np.radians(1.5)
    centre += again.normal(0, 1.5, 3)
    return Pose(
        turn=(_rotation(angles) * stretch).astype(np.float32),
        shift=(np.array(CENTRE_MM) + centre).astype(np.float32),
        direction_W3=direction_W3.astype(np.float32),
        push_W3=push_W3.astype(np.float32),
        phase_W=phase_W.astype(np.float32),
        swell=swell,
    )


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation about x (nodding), then y, then z, of angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    nod = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    lean = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    spin = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(spin @ lean @ nod)


def scanner_places(plane: str, level: float, site: int, across_P: np.ndarray, down_P: np.ndarray) -> np.ndarray:
    """Return the scanner's places of a picture, as radiologists hang it.

    Axial: front up, the patient's right at the left. Coronal: top up, right at the left. Sagittal: top up, facing left.

    Args:
        plane: One of ``PLANES``.
        level: The slice's place along the axis that it is cut across, in millimetres.
        site: Index of ``SITES``, whose field of view is used.
        across_P: Each pixel's place from left to right, -0.5 ... 0.5.
        down_P: Each pixel's place from top to bottom, -0.5 ... 0.5.
    """
    extent = np.float32(SITES[site].field_of_view_mm)
    left, up = -extent * across_P, -extent * down_P
    flat = np.full_like(left, level)
    order = {"axial": (left, up, flat), "coronal": (left, flat, up), "sagittal": (flat, left, up)}
    return np.stack(order[plane])
