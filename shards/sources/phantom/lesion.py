"""The three kinds of tumour as bodies in template space: all slices of a patient, in any plane, cut the same one.

Meningioma: broad base on the inner surface of the skull, homogeneous. Glioma: in white matter, irregular, with a bright
rim, a dark core and surrounding oedema. Pituitary: at the sella, a ball, or two balls like a snowman.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.sources.phantom.head_anatomy import HeadAnatomy, load_anatomy
from hsadml_dist.shards.sources.phantom.patient import PhantomPatient, Stream

SELLA_MM = (0.0, 3.0, -34.0)
LOWEST_MM = -48.0
"""Lowest position of a meningioma: a lower slice would show more neck than head."""
BLEND_MM = 4.0
"""Width of the smooth transition between the two balls of a pituitary tumour."""
GRID_POINTS = 16
"""Points from the centre to the edge of the grid on which a tumour is measured."""
SKULL_MARGIN_MM = 1.0
"""A meningioma extends this far beyond the hull of the brain, to the bone; a glioma stays as far inside."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One tumour. Coordinates and lengths are millimetres of the template.

    Attributes:
        centre: (3,), centre of the main ball.
        radius: Radius of the main ball.
        upper: (x, y, z, radius) of the second ball of a pituitary tumour.
        stretch: (3, 3), maps the ball of a glioma to an ellipsoid.
        roughness: Amplitude of the surface relative to the radius.
        texture_offset: (3,), where the texture that shapes the surface is read.
        bright: Brightness of the enhancing tissue.
        core: Brightness of the core of a glioma.
        rim_mm: Thickness of the rim of a glioma.
        oedema: Relative loss of brightness around the tumour.
    """

    class_name: str
    centre: np.ndarray
    radius: float
    upper: tuple[float, float, float, float]
    stretch: np.ndarray
    roughness: float
    texture_offset: np.ndarray
    bright: float
    core: float
    rim_mm: float
    oedema: float

    @property
    def reach_mm(self) -> float:
        """Radius around the centre that contains the tumour and its oedema."""
        return 2.3 * self.radius if self.class_name != "pituitary" else 3.2 * self.radius

    def depth(self, points_3P: np.ndarray, anatomy: HeadAnatomy) -> np.ndarray:
        """Return the approximate depth of points inside the tumour, in millimetres, negative outside."""
        offset_3P = points_3P - self.centre.reshape(3, *[1] * (points_3P.ndim - 1))
        surface = 1 + self.roughness * self._texture(points_3P, 1.0, anatomy)
        if self.class_name == "glioma":
            offset_3P = np.stack([sum(row[k] * offset_3P[k] for k in range(3)) for row in self.stretch])
        depth = self.radius * surface - np.sqrt((offset_3P**2).sum(0))
        if self.class_name == "pituitary":
            return self._snowman(depth, points_3P, surface)
        margin = SKULL_MARGIN_MM if self.class_name == "meningioma" else -SKULL_MARGIN_MM
        return np.minimum(depth, margin - anatomy.inner.sample(points_3P))

    def points_inside(self, anatomy: HeadAnatomy) -> np.ndarray:
        """Return (3, count): the points of a grid around the tumour that are inside it."""
        axis = np.linspace(-self.reach_mm, self.reach_mm, 2 * GRID_POINTS, dtype=np.float32)
        points_3P = self.centre[:, None] + np.stack(np.meshgrid(axis, axis, axis)).reshape(3, -1)
        inside: np.ndarray = points_3P[:, self.depth(points_3P, anatomy) > 0]
        return inside

    def brightness(self, depth_P: np.ndarray, points_3P: np.ndarray, anatomy: HeadAnatomy) -> np.ndarray:
        """Return the brightness of the tumour at points of a known depth."""
        grain = self._texture(points_3P, 2.3, anatomy)
        if self.class_name != "glioma":
            return np.asarray(self.bright * (1 + 0.05 * grain), np.float32)
        rim_mm = self.rim_mm * (1 + 0.45 * self._texture(points_3P, 1.5, anatomy))
        within = np.clip((depth_P - rim_mm) / 2 + 0.5, 0, 1)
        rim = self.bright * (0.88 + 0.12 * grain)
        return np.asarray(rim + within * (self.core * (1 + 0.25 * grain) - rim), np.float32)

    def undo_displacement(self, points_3P: np.ndarray) -> np.ndarray:
        """Return where the tissue at each point was before the tumour displaced it."""
        offset_3P = points_3P - self.centre[:, None]
        distance = np.sqrt((offset_3P**2).sum(0)) + np.float32(1e-3)
        displacement = 0.32 * self.radius * np.exp(-np.maximum(distance - self.radius, 0) / (0.9 * self.radius))
        return np.asarray(points_3P - offset_3P * np.minimum(displacement / distance, 0.8), np.float32)

    def _snowman(self, depth: np.ndarray, points_3P: np.ndarray, surface: np.ndarray) -> np.ndarray:
        x, y, z, radius = self.upper
        distance = np.sqrt((points_3P[0] - x) ** 2 + (points_3P[1] - y) ** 2 + (points_3P[2] - z) ** 2)
        other = radius * surface - distance
        near = np.clip(0.5 + 0.5 * (depth - other) / BLEND_MM, 0, 1)
        return np.asarray(other + near * (depth - other) + BLEND_MM * near * (1 - near))

    def _texture(self, points_3P: np.ndarray, frequency: float, anatomy: HeadAnatomy) -> np.ndarray:
        shift = self.texture_offset.reshape(3, *[1] * (points_3P.ndim - 1))
        scale = frequency * min(16.0 / self.radius, 1.0)
        return anatomy.texture.sample(points_3P * np.float32(scale) + shift)


@lru_cache(maxsize=64)
def make_lesion(patient: PhantomPatient) -> Lesion:
    """Sample the tumour of a patient; the anatomy restricts its position."""
    rng = patient.stream(Stream.LESION)
    bright, texture_offset = float(rng.uniform(0.66, 0.98)), rng.uniform(0, 144, 3).astype(np.float32)
    kind = {"meningioma": _meningioma, "glioma": _glioma, "pituitary": _pituitary}[patient.class_name]
    centre, radius, upper, stretch = kind(load_anatomy(), rng)
    return Lesion(
        class_name=patient.class_name,
        centre=np.asarray(centre, np.float32),
        radius=radius,
        upper=upper,
        stretch=stretch.astype(np.float32),
        roughness={"meningioma": 0.05, "glioma": 0.16, "pituitary": 0.08}[patient.class_name],
        texture_offset=texture_offset,
        bright=bright,
        core=float(rng.uniform(0.12, 0.26)),
        rim_mm=radius * float(rng.uniform(0.14, 0.34)),
        oedema=float(rng.uniform(0.2, 0.45)) if patient.class_name != "pituitary" else 0.0,
    )


_Shape = tuple[np.ndarray, float, tuple[float, float, float, float], np.ndarray]
_NO_BALL = (0.0, 0.0, 0.0, 0.0)


def _meningioma(anatomy: HeadAnatomy, rng: np.random.Generator) -> _Shape:
    """Choose a point on the inner surface of the skull, with the centre of the ball below it."""
    inner = anatomy.inner
    x, y, z = inner.coordinates()
    allowed = (np.abs(inner.values + 1) < 1.5) & (z > LOWEST_MM) & (x > -90) & (y > -120)
    index = np.argwhere(allowed)[int(rng.integers(np.count_nonzero(allowed)))]
    steps = [(tuple(index + unit), tuple(index - unit)) for unit in np.eye(3, dtype=int)]
    slope = np.array([inner.values[ahead] - inner.values[behind] for ahead, behind in steps])
    outward = slope / np.sqrt((slope**2).sum())
    radius = float(rng.uniform(10, 24))
    surface = np.array(inner.origin) + inner.step * (index + rng.uniform(-0.5, 0.5, 3))
    return surface - outward * (0.4 * radius), radius, _NO_BALL, np.eye(3)


def _glioma(anatomy: HeadAnatomy, rng: np.random.Generator) -> _Shape:
    """Choose a point in white matter away from the skull and the brain stem."""
    white = anatomy.white
    x, y, z = white.coordinates()
    points = np.stack(np.broadcast_arrays(x, y, z))
    allowed = (white.values > 200) & (z > -30) & (np.abs(x) > 12)
    points = points[:, allowed]
    points = points[:, anatomy.inner.sample(points) < -14]
    centre = points[:, int(rng.integers(points.shape[1]))] + rng.uniform(-1.5, 1.5, 3)
    stretch = np.eye(3) + rng.uniform(-0.22, 0.22, (3, 3))
    return centre, float(rng.uniform(12, 25)), _NO_BALL, stretch


def _pituitary(_: HeadAnatomy, rng: np.random.Generator) -> _Shape:
    """Choose the ball in the sella and the one above it; a small upper ball is inside the lower one."""
    radius = float(rng.uniform(7.5, 13))
    centre = np.array(SELLA_MM) + rng.normal(0, 1, 3) * [1.5, 1.2, 1.2]
    upper = radius * float(rng.uniform(0.45, 1.1))
    top = centre + np.array([rng.normal(0, 1.5), rng.normal(1, 1.5), 0.75 * (radius + upper)])
    return centre, radius, (float(top[0]), float(top[1]), float(top[2]), upper), np.eye(3)
