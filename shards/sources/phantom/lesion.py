"""The three tumours as bodies in the template's space: every slice of a person, in any plane, cuts the same one.

Meningioma: on the inner surface of the skull with a broad base, evenly bright. Glioma: in white matter, ragged, a
bright rim around a dark core, and swelling around it. Pituitary: at the sella, round or growing up like a snowman.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.sources.phantom.head_anatomy import HeadAnatomy, load_anatomy
from hsadml_dist.shards.sources.phantom.patient import PhantomPatient, Stream

SELLA_MM = (0.0, 3.0, -34.0)
LOWEST_MM = -48.0
"""No meningioma or glioma sits lower: the slice would hold more neck than head."""
MELT_MM = 4.0
"""How softly the two balls of a pituitary tumour run into each other."""
NET = 16
"""Points from the middle to the end of the net that measures a tumour."""
SKULL_MARGIN_MM = 1.0
"""A meningioma reaches so far past the brain's hull, to the bone; a glioma stays as far within."""


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One tumour. Places and lengths in the template's millimetres.

    Attributes:
        class_name: The tumour.
        centre: (3,): middle of its main ball.
        radius: Of its main ball.
        upper: (x, y, z, radius) of a pituitary tumour's second ball.
        stretch: (3, 3): a glioma's ball becomes an ellipsoid.
        ragged: How far the surface strays, as a part of the radius.
        drift: (3,): where in the texture the surface's shape is read.
        bright: Brightness of what takes up contrast agent.
        core: Brightness of a glioma's core.
        rim_mm: Thickness of a glioma's rim.
        swelling: Loss of brightness around the tumour, as a part.
    """

    class_name: str
    centre: np.ndarray
    radius: float
    upper: tuple[float, float, float, float]
    stretch: np.ndarray
    ragged: float
    drift: np.ndarray
    bright: float
    core: float
    rim_mm: float
    swelling: float

    @property
    def reach_mm(self) -> float:
        """Return a distance from the centre within which all of it and its swelling surely lie."""
        return 2.3 * self.radius if self.class_name != "pituitary" else 3.2 * self.radius

    def depth(self, places_3P: np.ndarray, anatomy: HeadAnatomy) -> np.ndarray:
        """Return about how deep inside the tumour each place lies, in millimetres, negative outside."""
        away_3P = places_3P - self.centre.reshape(3, *[1] * (places_3P.ndim - 1))
        strayed = 1 + self.ragged * self._texture(places_3P, 1.0, anatomy)
        if self.class_name == "glioma":
            away_3P = np.stack([sum(row[k] * away_3P[k] for k in range(3)) for row in self.stretch])
        depth = self.radius * strayed - np.sqrt((away_3P**2).sum(0))
        if self.class_name == "pituitary":
            return self._snowman(depth, places_3P, strayed)
        margin = SKULL_MARGIN_MM if self.class_name == "meningioma" else -SKULL_MARGIN_MM
        return np.minimum(depth, margin - anatomy.inner.at(places_3P))

    def places_inside(self, anatomy: HeadAnatomy) -> np.ndarray:
        """Return (3, count): points of a net around it that lie inside the tumour."""
        net = np.linspace(-self.reach_mm, self.reach_mm, 2 * NET, dtype=np.float32)
        places_3P = self.centre[:, None] + np.stack(np.meshgrid(net, net, net)).reshape(3, -1)
        inside: np.ndarray = places_3P[:, self.depth(places_3P, anatomy) > 0]
        return inside

    def brightness(self, depth_P: np.ndarray, places_3P: np.ndarray, anatomy: HeadAnatomy) -> np.ndarray:
        """Return the tumour's brightness at places of a known depth."""
        grain = self._texture(places_3P, 2.3, anatomy)
        if self.class_name != "glioma":
            return np.asarray(self.bright * (1 + 0.05 * grain), np.float32)
        rim_mm = self.rim_mm * (1 + 0.45 * self._texture(places_3P, 1.5, anatomy))
        within = np.clip((depth_P - rim_mm) / 2 + 0.5, 0, 1)
        rim = self.bright * (0.88 + 0.12 * grain)
        return np.asarray(rim + within * (self.core * (1 + 0.25 * grain) - rim), np.float32)

    def push_aside(self, places_3P: np.ndarray) -> np.ndarray:
        """Return where in the brain without tumour each place's tissue came from: the tumour has pushed it away."""
        away_3P = places_3P - self.centre[:, None]
        distance = np.sqrt((away_3P**2).sum(0)) + np.float32(1e-3)
        pushed = 0.32 * self.radius * np.exp(-np.maximum(distance - self.radius, 0) / (0.9 * self.radius))
        return np.asarray(places_3P - away_3P * np.minimum(pushed / distance, 0.8), np.float32)

    def _snowman(self, depth: np.ndarray, places_3P: np.ndarray, strayed: np.ndarray) -> np.ndarray:
        x, y, z, radius = self.upper
        distance = np.sqrt((places_3P[0] - x) ** 2 + (places_3P[1] - y) ** 2 + (places_3P[2] - z) ** 2)
        other = radius * strayed - distance
        near = np.clip(0.5 + 0.5 * (depth - other) / MELT_MM, 0, 1)
        return np.asarray(other + near * (depth - other) + MELT_MM * near * (1 - near))

    def _texture(self, places_3P: np.ndarray, pace: float, anatomy: HeadAnatomy) -> np.ndarray:
        shift = self.drift.reshape(3, *[1] * (places_3P.ndim - 1))
        scale = pace * min(16.0 / self.radius, 1.0)
        return anatomy.texture.at(places_3P * np.float32(scale) + shift)


@lru_cache(maxsize=64)
def make_lesion(person: PhantomPatient) -> Lesion:
    """Draw a person's tumour; where it may lie follows from the anatomy."""
    rng = person.stream(Stream.LESION)
    bright, drift = float(rng.uniform(0.66, 0.98)), rng.uniform(0, 144, 3).astype(np.float32)
    kind = {"meningioma": _meningioma, "glioma": _glioma, "pituitary": _pituitary}[person.class_name]
    centre, radius, upper, stretch = kind(load_anatomy(), rng)
    return Lesion(
        class_name=person.class_name,
        centre=np.asarray(centre, np.float32),
        radius=radius,
        upper=upper,
        stretch=stretch.astype(np.float32),
        ragged={"meningioma": 0.05, "glioma": 0.16, "pituitary": 0.08}[person.class_name],
        drift=drift,
        bright=bright,
        core=float(rng.uniform(0.12, 0.26)),
        rim_mm=radius * float(rng.uniform(0.14, 0.34)),
        swelling=float(rng.uniform(0.2, 0.45)) if person.class_name != "pituitary" else 0.0,
    )


_Shape = tuple[np.ndarray, float, tuple[float, float, float, float], np.ndarray]
_NO_BALL = (0.0, 0.0, 0.0, 0.0)


def _meningioma(anatomy: HeadAnatomy, rng: np.random.Generator) -> _Shape:
    """Choose a place on the inner surface of the skull, and sink the ball's middle below it."""
    inner = anatomy.inner
    x, y, z = inner.places()
    allowed = (np.abs(inner.values + 1) < 1.5) & (z > LOWEST_MM) & (x > -90) & (y > -120)
    index = np.argwhere(allowed)[int(rng.integers(np.count_nonzero(allowed)))]
    outwards = _outwards(inner.values, index)
    radius = float(rng.uniform(10, 24))
    surface = np.array(inner.origin) + inner.step * (index + rng.uniform(-0.5, 0.5, 3))
    return surface - outwards * (0.4 * radius), radius, _NO_BALL, np.eye(3)


def _outwards(distance: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the unit vector along which ``distance`` grows fastest at a grid point."""
    units = np.eye(3, dtype=int)
    slope = np.array([distance[tuple(index + unit)] - distance[tuple(index - unit)] for unit in units])
    return np.asarray(slope / np.sqrt((slope**2).sum()))


def _glioma(anatomy: HeadAnatomy, rng: np.random.Generator) -> _Shape:
    """Choose a place in white matter away from the skull and the brain stem."""
    white = anatomy.white
    x, y, z = white.places()
    places = np.stack(np.broadcast_arrays(x, y, z))
    allowed = (white.values > 200) & (z > -30) & (np.abs(x) > 12)
    places = places[:, allowed]
    places = places[:, anatomy.inner.at(places) < -14]
    centre = places[:, int(rng.integers(places.shape[1]))] + rng.uniform(-1.5, 1.5, 3)
    stretch = np.eye(3) + rng.uniform(-0.22, 0.22, (3, 3))
    return centre, float(rng.uniform(12, 25)), _NO_BALL, stretch


def _pituitary(_: HeadAnatomy, rng: np.random.Generator) -> _Shape:
    """Choose the ball in the sella and the one above it; a small upper ball hides in the lower one."""
    radius = float(rng.uniform(7.5, 13))
    centre = np.array(SELLA_MM) + rng.normal(0, 1, 3) * [1.5, 1.2, 1.2]
    upper = radius * float(rng.uniform(0.45, 1.1))
    top = centre + np.array([rng.normal(0, 1.5), rng.normal(1, 1.5), 0.75 * (radius + upper)])
    return centre, radius, (float(top[0]), float(top[1]), float(top[2]), upper), np.eye(3)
