"""Drawing one slice of a generated patient, in closed form on warped coordinates.

Units: half the image's side; x to the right, y down, (0, 0) the image's middle. Brightness: about 0 ... 1.
Shapes in names: ``_P`` one value a pixel, (size, size) float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.record import Pixels
from hsadml_dist.shards.sources.phantom_person import Person

BRAIN = 0.83
"""The brain's radius as a part of the head's."""
SKULL_INSIDE, SKULL_OUTSIDE = 0.87, 0.93
BONE, FLUID, MUSCLE = 0.05, 0.10, 0.24


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A plane's shapes.

    Attributes:
        head: Half axes of the head.
        base: Height below which there is no brain, but the skull's base and the neck.
        sella: Where the pituitary gland lies.
        ventricles: Each (x, y, half width, half height, tilt in radians).
    """

    head: tuple[float, float]
    base: float
    sella: tuple[float, float]
    ventricles: tuple[tuple[float, float, float, float, float], ...]


OUTLINES = {
    "axial": Outline(
        head=(0.66, 0.82),
        base=9.0,
        sella=(0.0, -0.12),
        ventricles=(
            (-0.11, -0.14, 0.045, 0.19, -0.35),
            (0.11, -0.14, 0.045, 0.19, 0.35),
            (0.0, 0.2, 0.025, 0.09, 0.0),
        ),
    ),
    "coronal": Outline(
        head=(0.70, 0.78),
        base=0.40,
        sella=(0.0, 0.30),
        ventricles=((-0.11, -0.13, 0.13, 0.045, 0.5), (0.11, -0.13, 0.13, 0.045, -0.5), (0.0, 0.06, 0.02, 0.08, 0.0)),
    ),
    "sagittal": Outline(
        head=(0.83, 0.74),
        base=0.38,
        sella=(-0.16, 0.30),
        ventricles=((-0.05, -0.08, 0.26, 0.05, -0.15), (0.22, 0.02, 0.10, 0.045, 0.9), (0.18, 0.26, 0.05, 0.04, 0.0)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The slice under the brush: brightness and, for each pixel, where it lies in the undeformed head."""

    image_P: np.ndarray
    x_P: np.ndarray
    y_P: np.ndarray
    brain: tuple[float, float]
    """Half axes of the brain in this slice."""

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Return the part of the image that surely holds all within ``reach`` of (x, y): drawing there is quick."""
        side = self.image_P.shape[0]
        span = (reach + 0.25) * side / 2
        return tuple(  # type: ignore[return-value]
            slice(max(0, int((at + 1) * side / 2 - span)), max(1, min(side, int((at + 1) * side / 2 + span) + 1)))
            for at in (y, x)
        )


def draw(person: Person, number: int, size: int) -> Pixels:
    """Draw slice ``number`` of ``person``.

    Returns:
        The image, float32 (size, size), about 0 ... 1, and the lesion's mask, uint8 (size, size), 1 inside.
    """
    rng = np.random.default_rng([person.seed, person.patient, number])
    outline, depth = OUTLINES[person.planes[number]], person.depths[number]
    canvas = _head(person, outline, depth, size, rng)
    for x, y, half_width, half_height, tilt in outline.ventricles:
        swell = person.ventricle * (1 - 0.6 * abs(depth))
        _ellipse(canvas, (x, y - 0.05 * depth), (half_width * swell, half_height * swell), tilt, FLUID)
    _vessels(canvas, rng)
    mask = _tumour(canvas, person, outline, depth, rng)
    shown = np.power(canvas.image_P, person.gamma) * _bias(person, size)
    noise = rng.standard_normal((2, size, size), dtype=np.float32) * np.float32(person.noise)
    return Pixels(image=np.hypot(shown + noise[0], noise[1]), mask=mask)  # magnitude images carry Rician noise


@lru_cache(maxsize=4)
def _axis(size: int) -> np.ndarray:
    return ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)


def _inside(distance: np.ndarray, size: int) -> np.ndarray:
    """Return 1 where ``distance`` is negative and 0 where positive, with an edge two pixels wide."""
    return np.clip(0.5 - distance * (size / 4), 0, 1)


def _blend(image: np.ndarray, weight: np.ndarray, value: float | np.ndarray) -> None:
    image += weight * (value - image)


def _coordinates(person: Person, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y) of each pixel in the undeformed head: tilt, shift and stretch, then a few smooth waves."""
    axis = _axis(size)
    tilt = person.tilt + rng.normal(0, 0.015)
    shift = np.asarray(person.centre) + rng.normal(0, 0.008, 2)
    across, down = (axis - shift[0])[None, :], (axis - shift[1])[:, None]
    x = (np.cos(tilt) * across + np.sin(tilt) * down) / person.scale[0]
    y = (np.cos(tilt) * down - np.sin(tilt) * across) / person.scale[1]
    for row, column, phase, push_x, push_y in person.warp:
        wave = np.sin(2.5 * row * axis + 3 * phase)[:, None] * np.cos(2.5 * column * axis - phase)[None, :]
        x += 0.012 * push_x * wave
        y += 0.012 * push_y * wave
    return x.astype(np.float32), y.astype(np.float32)


def _head(person: Person, outline: Outline, depth: float, size: int, rng: np.random.Generator) -> Canvas:
    """Draw scalp, skull, fluid, folded grey matter and white matter; below the base, muscle."""
    x, y = _coordinates(person, size, rng)
    shrink = float(np.sqrt(1 - 0.35 * depth**2))
    half_x, half_y = outline.head[0] * shrink, outline.head[1] * shrink
    radius = np.sqrt((x / half_x) ** 2 + (y / half_y) ** 2)
    count, phase, groove = person.sulci
    fold = np.sin(count * np.arctan2(y, x) + phase + 9 * x * y + 5 * depth)
    image = person.scalp * _inside((radius - 1) * half_x, size)
    _blend(image, _inside((radius - SKULL_OUTSIDE) * half_x, size), BONE)
    _blend(image, _inside((radius - SKULL_INSIDE) * half_x, size), FLUID)
    _blend(image, _inside((radius - BRAIN + 0.05 * groove * np.clip(fold - 0.4, 0, 1)) * half_x, size), person.grey)
    _blend(image, _inside((radius - 0.70 + 0.06 * fold) * half_x, size), person.white)
    if outline.base < 1:
        below = _inside(outline.base + 0.05 * np.cos(5 * x) - y, size) * (radius < SKULL_OUTSIDE)
        _blend(image, below, MUSCLE + 0.08 * np.sin(11 * x + phase) * np.cos(13 * y))
    return Canvas(image_P=image, x_P=x, y_P=y, brain=(half_x * BRAIN, half_y * BRAIN))


def _ellipse(canvas: Canvas, centre: tuple[float, float], half: tuple[float, float], tilt: float, value: float) -> None:
    window = canvas.window(*centre, max(half))
    dx, dy = canvas.x_P[window] - centre[0], canvas.y_P[window] - centre[1]
    along, across = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    radius = np.sqrt((along / half[0]) ** 2 + (across / half[1]) ** 2)
    _blend(canvas.image_P[window], _inside((radius - 1) * min(half), canvas.image_P.shape[0]), value)


def _vessels(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a few bright spots: contrast agent also fills vessels, so that brightness alone tells no class."""
    for _ in range(int(rng.integers(2, 7))):
        angle, part = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.98)
        centre = (float(canvas.brain[0] * part * np.cos(angle)), float(canvas.brain[1] * part * np.sin(angle)))
        half = (float(rng.uniform(0.010, 0.022)), float(rng.uniform(0.010, 0.035)))
        _ellipse(canvas, centre, half, float(rng.uniform(0, 3.1)), float(rng.uniform(0.6, 1.0)))


def _tumour(canvas: Canvas, person: Person, outline: Outline, depth: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the tumour and return its mask."""
    size = canvas.image_P.shape[0]
    extent = person.lesion[2] * float(np.sqrt(1 - (0.8 * depth) ** 2))
    x, y = _tumour_centre(canvas, person, outline, extent)
    x, y = x + rng.normal(0, 0.008), y + rng.normal(0, 0.008)
    window = canvas.window(x, y, 1.7 * extent)
    dx, dy = canvas.x_P[window] - x, canvas.y_P[window] - y
    angle = np.arctan2(dy, dx)
    raggedness = {"meningioma": 0.04, "glioma": 0.11, "pituitary": 0.05}[person.class_name]
    edge = 1 + raggedness * sum(np.sin((k + 2) * angle + phase) for k, phase in enumerate(person.ragged))
    radius = np.sqrt(dx**2 + dy**2) / (extent * edge)
    image = canvas.image_P[window]
    within = np.sqrt((canvas.x_P[window] / canvas.brain[0]) ** 2 + (canvas.y_P[window] / canvas.brain[1]) ** 2) < 1.04
    solid = _inside((radius - 1) * extent, size) * within
    if person.class_name == "glioma":
        oedema = np.clip(1.7 - radius, 0, 0.7) * within
        image *= 1 - 0.35 * oedema
    _blend(image, solid, person.enhancement * (1 + 0.05 * np.sin(25 * dx + person.ragged[0])))
    if person.class_name == "glioma":
        _blend(image, _inside((radius - person.core * (1 + 0.1 * np.sin(3 * angle))) * extent, size) * within, 0.16)
    mask = np.zeros((size, size), np.uint8)
    mask[window] = solid >= 0.5
    return mask


def _tumour_centre(canvas: Canvas, person: Person, outline: Outline, extent: float) -> tuple[float, float]:
    """Return where the tumour lies: at the skull, in the white matter, or at the sella."""
    angle, part, _ = person.lesion
    if person.class_name == "pituitary":
        return outline.sella
    side, up = float(np.cos(angle)), float(np.sin(angle))
    if outline.base < 1:
        up = min(up, 0.25 * up)  # above the skull's base
    reach = (1 - 0.8 * extent / min(canvas.brain)) if person.class_name == "meningioma" else part
    norm = float(np.hypot(side, up))
    return canvas.brain[0] * reach * side / norm, canvas.brain[1] * reach * up / norm


def _bias(person: Person, size: int) -> np.ndarray:
    axis = _axis(size)
    across, down = axis[None, :], axis[:, None]
    b = person.bias
    return np.clip(1 + 0.08 * (b[0] * across + b[1] * down + b[2] * across * down + b[3] * down**2), 0.4, 1.8)
