"""Generated patients: class, site, exams and planes, and the pose and shape of the head in the scanner.

Everything follows from (seed, patient number) or (seed, patient number, exam) by numpy's generator alone: neither the
template nor scipy is needed to list the slices of a million patients.

Scanner coordinates: x to the patient's right, y to the front, z up, (0, 0, 0) at the centre of the field of view.
Shapes in names: ``_3P`` coordinates of P points; ``_P`` one value per point; ``_W3`` one row per wave.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.source import PLANES
from hsadml_dist.shards.sources.phantom.scanner import SITES

CLASSES = ("meningioma", "glioma", "pituitary")
MAX_SLICES = 38
MEDIAN_SLICES = 6.6
SLICES_LOG_STD = 0.65
"""The number of slices per patient is log-normal, clipped to 1 ... MAX_SLICES."""
SECOND_EXAM_SHARE = 0.2
"""Fraction of patients with a second exam."""
PLANE_COUNT_SHARES = (0.5, 0.35, 0.15)
"""Fractions of patients imaged in one, two and three planes."""

WAVES = 9
WAVE_MM = 1.6
WAVELENGTHS_MM = (110, 230)
CENTRE_MM = (0.0, -17.0, -18.0)
"""Template coordinates of the centre of the field of view."""
VENTRICLES_MM = (0.0, -17.0, 12.0)
VENTRICLES_REACH_MM = 30.0
INVERSE_ITERATIONS = 5
"""Fixed-point iterations of the inverse. The slope of the warp is below 0.5, so the error falls below 0.1 mm."""
AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Plane -> axis of scanner coordinates that the slices are perpendicular to."""


class Stream(enum.IntEnum):
    """Purpose of a random stream, so that a change in one leaves the others as they were. Never 0: numpy pads by 0."""

    PERSON = 1
    LESION = 2
    POSE = 3
    CONTRAST = 4
    SLICE = 5


def random_stream(seed: int, patient: int, purpose: Stream, number: int = 0) -> np.random.Generator:
    """Return the generator of one purpose and patient."""
    return np.random.default_rng([seed, patient, purpose, number])


@dataclass(frozen=True, kw_only=True)
class PhantomPatient:
    """A generated patient, as far as the listing needs it.

    Attributes:
        site: Site of the scans, an index of ``SITES``; independent of the class.
        planes: Plane of each slice.
        exams: Exam of each slice, 0 or 1.
    """

    seed: int
    number: int
    class_name: str
    site: int
    planes: tuple[str, ...]
    exams: tuple[int, ...]

    def index_in_series(self, slice_number: int) -> int:
        """Return the index of a slice among the slices of its exam and plane."""
        series = list(zip(self.exams, self.planes, strict=True))
        return series[:slice_number].count(series[slice_number])

    def stream(self, purpose: Stream, number: int = 0) -> np.random.Generator:
        """Return this patient's generator of one purpose."""
        return random_stream(self.seed, self.number, purpose, number)


@lru_cache(maxsize=64)
def make_patient(seed: int, number: int) -> PhantomPatient:
    """Sample patient ``number``; the classes of consecutive patients alternate."""
    rng = random_stream(seed, number, Stream.PERSON)
    site = int(rng.integers(len(SITES)))
    count = int(np.clip(np.rint(MEDIAN_SLICES * np.exp(SLICES_LOG_STD * rng.standard_normal())), 1, MAX_SLICES))
    second = count - int(rng.integers(1, count)) if count > 1 and rng.random() < SECOND_EXAM_SHARE else count
    own_planes = rng.permutation(len(PLANES))[: 1 + int(rng.choice(3, p=PLANE_COUNT_SHARES))]
    planes = [PLANES[int(plane)] for plane in rng.choice(own_planes, size=count)]
    return PhantomPatient(
        seed=seed,
        number=number,
        class_name=CLASSES[number % len(CLASSES)],
        site=site,
        planes=(*sorted(planes[:second]), *sorted(planes[second:])),
        exams=tuple(int(slice_number >= second) for slice_number in range(count)),
    )


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Map from scanner to template: rotation, scaling and shift (the pose), then smooth waves (the shape of the head).

    Attributes:
        matrix: (3, 3), rotation and scaling, scanner to head.
        shift: (3,), head coordinates of the origin of the scanner, in millimetres.
        direction_W3: Wave vectors in radians per millimetre.
        amplitude_W3: Amplitudes in millimetres.
        phase_W: Phases in radians.
        ventricle_growth: Relative enlargement of the ventricles.
    """

    matrix: np.ndarray
    shift: np.ndarray
    direction_W3: np.ndarray
    amplitude_W3: np.ndarray
    phase_W: np.ndarray
    ventricle_growth: float

    def to_template(self, scanner_3P: np.ndarray) -> np.ndarray:
        """Return the template coordinates of points in the scanner."""
        head_3P = sum(self.matrix[:, k, None] * scanner_3P[k] for k in range(3)) + self.shift[:, None]
        return np.asarray(head_3P + self._displacement(head_3P), np.float32)

    def to_scanner(self, template_3P: np.ndarray) -> np.ndarray:
        """Invert :meth:`to_template`, to about 0.1 mm."""
        head_3P = template_3P
        for _ in range(INVERSE_ITERATIONS):
            head_3P = template_3P - self._displacement(head_3P)
        inverse = np.linalg.inv(self.matrix)
        return np.asarray(sum(inverse[:, k, None] * (head_3P[k] - self.shift[k]) for k in range(3)), np.float32)

    def scale_ventricles(self, template_3P: np.ndarray) -> np.ndarray:
        """Move points towards the ventricles, so that these appear larger (or smaller)."""
        offset_3P = template_3P - np.array(VENTRICLES_MM, np.float32)[:, None]
        weight = np.exp(-(offset_3P**2).sum(0) / (2 * VENTRICLES_REACH_MM**2))
        return np.asarray(template_3P - np.float32(self.ventricle_growth) * weight * offset_3P, np.float32)

    def _displacement(self, head_3P: np.ndarray) -> np.ndarray:
        total_3P = np.zeros_like(head_3P)
        for direction, amplitude, phase in zip(self.direction_W3, self.amplitude_W3, self.phase_W, strict=True):
            along = direction[0] * head_3P[0] + direction[1] * head_3P[1] + direction[2] * head_3P[2]
            total_3P += amplitude[:, None] * np.sin(along + phase)
        return total_3P


@lru_cache(maxsize=64)
def make_pose(patient: PhantomPatient, exam: int) -> Pose:
    """Sample the head of a patient and its pose in one exam; a second exam differs slightly."""
    rng = patient.stream(Stream.POSE)
    scale = rng.normal(1.06, 0.035) * rng.normal(1, 0.025, 3)
    angles = rng.normal(0, 1, 3) * np.radians([6.0, 2.5, 3.0])
    centre = rng.normal(0, 1, 3) * np.array([3.0, 4.0, 5.0])
    direction_W3 = rng.normal(0, 1, (WAVES, 3))
    direction_W3 /= np.linalg.norm(direction_W3, axis=1, keepdims=True)
    direction_W3 *= 2 * np.pi / rng.uniform(*WAVELENGTHS_MM, (WAVES, 1))
    amplitude_W3, phase_W = rng.normal(0, WAVE_MM, (WAVES, 3)), rng.uniform(0, 2 * np.pi, WAVES)
    ventricle_growth = float(rng.uniform(-0.25, 0.4))
    exam_rng = patient.stream(Stream.POSE, 1 + exam)
    angles += exam_rng.normal(0, 1, 3) * np.radians(1.5)
    centre += exam_rng.normal(0, 1.5, 3)
    return Pose(
        matrix=(_rotation(angles) * scale).astype(np.float32),
        shift=(np.array(CENTRE_MM) + centre).astype(np.float32),
        direction_W3=direction_W3.astype(np.float32),
        amplitude_W3=amplitude_W3.astype(np.float32),
        phase_W=phase_W.astype(np.float32),
        ventricle_growth=ventricle_growth,
    )


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation about x (nodding), then y, then z, by angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def scanner_points(plane: str, level: float, site: int, across_P: np.ndarray, down_P: np.ndarray) -> np.ndarray:
    """Return the scanner coordinates of points of an image, in radiological orientation.

    Axial: front up, the patient's right at the left. Coronal: top up, right at the left. Sagittal: top up, facing left.
    ``level`` is the coordinate of the slice along the axis of its plane, in millimetres; ``across_P`` and ``down_P``
    are -0.5 ... 0.5, from left to right and from top to bottom.
    """
    extent = np.float32(SITES[site].field_of_view_mm)
    left, up = -extent * across_P, -extent * down_P
    flat = np.full_like(left, level)
    axes = {"axial": (left, up, flat), "coronal": (left, flat, up), "sagittal": (flat, left, up)}
    return np.stack(axes[plane])
