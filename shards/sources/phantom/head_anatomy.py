"""The reference head of all generated patients: template brain, skull, skin and soft tissue.

The brain is the ICBM 2009a nonlinear symmetric template (V. Fonov et al., NeuroImage 54, 2011, 313-327) as shipped by
nilearn: an average of 152 healthy adults, without skull. Skull and skin follow from its distance map. Face, sinuses,
eyes, jaw and neck are ellipsoids placed where an adult head has these parts; none of them is measured.

Coordinates are millimetres of the MNI152 template: x to the patient's right, y to the front, z up. Shapes in names:
``_3P`` coordinates of P points, (3, ...) float32; ``_P`` one value per point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.errors import UsageError

NILEARN_MISSING = (
    'SOURCE phantom: nilearn, which carries the anatomy, is not installed; pip install "hsadml-dist[demo]"'
)

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class VoxelGrid:
    """Values on a regular grid, read at any point by linear interpolation.

    Attributes:
        values: (x, y, z), any real dtype.
        origin: Coordinates of the first value, in millimetres.
        step: Distance between neighbours in millimetres, the same along all axes.
        mode: Value beyond the grid, as in scipy.ndimage: ``constant`` (zero), ``nearest`` or ``grid-wrap``.
    """

    values: np.ndarray
    origin: Triple
    step: float
    mode: str = "constant"

    def sample(self, points_3P: np.ndarray) -> np.ndarray:
        """Return float32 values at points in millimetres."""
        from scipy.ndimage import map_coordinates

        start = np.asarray(self.origin, np.float32).reshape(3, *[1] * (points_3P.ndim - 1))
        index_3P = (points_3P - start) / np.float32(self.step)
        sampled: np.ndarray = map_coordinates(self.values, index_3P, np.float32, order=1, mode=self.mode)
        return sampled

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return x, y and z of the grid in millimetres, shaped to broadcast to the grid."""
        x, y, z = (
            (start + self.step * np.arange(count)).astype(np.float32)
            for start, count in zip(self.origin, self.values.shape, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def window(self, centre: Triple, half: Triple) -> tuple[slice, slice, slice]:
        """Return the part of the grid that contains the box ``centre`` plus and minus ``half``."""
        spans = []
        for axis in range(3):
            low = (centre[axis] - half[axis] - self.origin[axis]) / self.step
            high = (centre[axis] + half[axis] - self.origin[axis]) / self.step
            spans.append(slice(max(0, int(low)), max(0, int(high) + 2)))
        return spans[0], spans[1], spans[2]


def ellipsoid_distance(points: tuple[np.ndarray, np.ndarray, np.ndarray], centre: Triple, half: Triple) -> np.ndarray:
    """Return the distance to the surface of an ellipsoid in millimetres, negative inside; exact only at the surface."""
    scaled = [(x - c) / h for x, c, h in zip(points, centre, half, strict=True)]
    epsilon = np.float32(1e-3)  # at the centre the quotient below is undefined
    radius = np.maximum(np.sqrt(sum(s * s for s in scaled)), epsilon)
    slope = np.maximum(np.sqrt(sum((s / h) ** 2 for s, h in zip(scaled, half, strict=True))), epsilon / max(half))
    return np.asarray(radius * (radius - 1) / slope)


AIR, CORTEX, EYE, FLUID, MUSCLE, CORD, MARROW, MUCOSA, FAT = 0.02, 0.06, 0.16, 0.14, 0.34, 0.48, 0.58, 0.74, 0.95

HEAD_SHAPES: tuple[tuple[Triple, Triple], ...] = (
    ((0, 38, -66), (62, 52, 60)),
    ((0, 0, -62), (69, 70, 52)),
    ((0, 58, -108), (40, 32, 24)),
    ((0, 94, -58), (12, 15, 18)),
    ((0, 88, -44), (8, 10, 22)),
    ((48, 26, -30), (19, 32, 34)),
    ((-48, 26, -30), (19, 32, 34)),
    ((50, 8, -84), (18, 30, 36)),
    ((-50, 8, -84), (18, 30, 36)),
    ((0, -37, -130), (62, 52, 110)),
    ((78, -22, -42), (7, 13, 24)),
    ((-78, -22, -42), (7, 13, 24)),
)
"""(centre, half axes) of face, chin, nose and its bridge, temples, jaws, neck and ears."""

_PAIRED: tuple[tuple[Triple, Triple, float], ...] = (
    ((34, 52, -38), (19, 30, 17), FAT),
    ((50, 22, -30), (11, 20, 22), MUSCLE),
    ((33, 64, -38), (13.5, 13.5, 13.5), MUCOSA),
    ((33, 64, -38), (12, 12, 12), EYE),
    ((33, 72, -38), (5, 2.5, 5), MUSCLE),
    ((44, 52, -34), (3, 17, 5), MUSCLE),
    ((22, 52, -38), (2.5, 17, 5), MUSCLE),
    ((28, 34, -38), (2.5, 18, 2.5), CORD),
    ((33, 48, -28), (4, 18, 2), MUSCLE),
    ((33, 48, -49), (4, 18, 2), MUSCLE),
    ((28, 48, -66), (15, 19, 16), MUCOSA),
    ((28, 48, -66), (13, 17, 14), AIR),
    ((8, 52, -40), (5, 20, 9), MUCOSA),
    ((7, 56, -40), (3.5, 6, 7), AIR),
    ((8, 42, -40), (3.5, 6, 7), AIR),
    ((9, 48, -66), (6, 32, 15), MUCOSA),
    ((6, 52, -58), (2, 28, 7), AIR),
    ((13, 48, -70), (2, 28, 7), AIR),
    ((54, 34, -76), (8, 18, 18), MUCOSA),
    ((52, 14, -88), (8, 16, 28), MUSCLE),
    ((46, 6, -92), (5, 13, 32), CORTEX),
    ((46, 6, -92), (3, 10, 29), MARROW),
    ((34, 10, -78), (9, 16, 22), MUSCLE),
    ((36, 52, -114), (6, 26, 11), CORTEX),
    ((36, 52, -114), (3.5, 23, 8), MARROW),
    ((56, -8, -84), (11, 13, 24), MUCOSA),
    ((48, -26, -44), (16, 12, 13), CORTEX),
    ((54, -30, -48), (4, 4, 5), MUCOSA),
    ((45, -25, -54), (4, 4, 5), AIR),
    ((36, -22, -46), (5, 5, 5), AIR),
    ((48, -22, -40), (3, 5, 3), AIR),
    ((62, -18, -44), (12, 3, 3), AIR),
    ((17, 2, -37), (7, 11, 8), MUCOSA),
    ((15, 0, -37), (3.2, 4, 6), CORTEX),
    ((30, -8, -80), (4, 4, 40), CORTEX),
    ((36, -14, -90), (5.5, 6, 44), MUCOSA),
    ((20, -82, -100), (17, 18, 60), MUSCLE),
    ((44, -60, -100), (12, 20, 55), MUSCLE),
    ((31, -72, -100), (1.5, 22, 50), MUCOSA),
    ((22, -36, -104), (9, 9, 60), MUSCLE),
)
"""(centre, half axes, brightness) of parts on both sides of the midline."""

_MIDLINE: tuple[tuple[Triple, Triple, float], ...] = (
    ((0, 80, -6), (17, 4, 11), AIR),
    ((0, -12, -50), (11, 11, 22), MARROW),
    ((0, 20, -45), (19, 17, 12), CORTEX),
    ((0, 20, -45), (17, 15, 10), MUCOSA),
    ((0, 20, -45), (16, 14, 9), AIR),
    ((0, 2, -34), (6.5, 5, 4), MUCOSA),
    ((0, 44, -80), (24, 34, 3), CORTEX),
    ((0, 42, -86), (24, 32, 3), MUCOSA),
    ((0, 40, -102), (26, 34, 16), MUSCLE),
    ((0, 76, -92), (28, 7, 14), CORTEX),
    ((0, 74, -114), (16, 7, 12), CORTEX),
    ((0, 75, -115), (13, 4, 8), MARROW),
    ((0, 5, -82), (13, 8, 30), MUCOSA),
    ((0, 5, -88), (9, 5, 34), AIR),
    ((0, 0, -126), (11, 6, 22), AIR),
    ((0, -84, -112), (2, 16, 55), FAT),
    ((0, -46, -108), (13, 10, 62), CORTEX),
    ((0, -46, -108), (12, 9, 60), FLUID),
    ((0, -45, -108), (6, 5, 62), CORD),
    ((0, -20, -82), (9, 9, 16), MARROW),
    ((0, -22, -104), (12, 10, 7.5), MARROW),
    ((0, -23, -121), (12, 10, 7.5), MARROW),
    ((0, -23, -138), (12, 10, 7.5), MARROW),
)


def paint_soft_tissue(texture: VoxelGrid) -> VoxelGrid:
    """Return the brightness outside the skull, uint8 0 ... 255 at 2 mm; muscle where no part is listed."""
    shape, step = (91, 122, 77), 2
    soft = VoxelGrid(
        values=np.full(shape, MUSCLE, np.float32), origin=(-90.0, -126.0, -152.0), step=step, mode="nearest"
    )
    for (x, y, z), half, brightness in _PAIRED:
        for side in (-1, 1):
            _paint(soft, (side * x, y, z), half, brightness)
    for centre, half, brightness in _MIDLINE:
        _paint(soft, centre, half, brightness)
    grain = texture.values[np.ix_(*[np.arange(count) % texture.values.shape[0] for count in shape])]
    values = np.clip(soft.values * (1 + 0.16 * grain), 0, 1) * 255
    return VoxelGrid(values=np.rint(values).astype(np.uint8), origin=soft.origin, step=step, mode="nearest")


def _paint(soft: VoxelGrid, centre: Triple, half: Triple, brightness: float) -> None:
    """Paint an ellipsoid over the earlier parts, with an edge one voxel wide."""
    reach = (half[0] + 2, half[1] + 2, half[2] + 2)
    window = soft.window(centre, reach)
    x, y, z = soft.coordinates()
    points = (x[window[0]], y[:, window[1]], z[:, :, window[2]])
    cover = np.clip(0.5 - ellipsoid_distance(points, centre, half) / 2, 0, 1)
    soft.values[window] += cover * (np.float32(brightness) - soft.values[window])


COARSE_MM = 3
COARSE_ORIGIN = (-96.0, -138.0, -156.0)
COARSE_SHAPE = (65, 88, 88)
CLOSING_MM = 14.0
"""The inner surface of the skull bridges furrows narrower than twice this."""
SCALP_MM = 12.5
"""From the inner surface of the skull to the skin."""
SKIN_BLEND_MM = 12.0
"""Width of the smooth transition between face, neck and skull."""


@dataclass(frozen=True, kw_only=True)
class HeadAnatomy:
    """Grids over the undeformed head.

    Attributes:
        brain: Brightness of the template, uint8, 0 outside the brain.
        white: Fraction of white matter, uint8 0 ... 255, on every third voxel.
        inner: Distance to the inner surface of the skull in millimetres, negative inside.
        skin: Distance to the skin in millimetres, negative inside.
        soft: Brightness outside the skull, uint8.
        texture: Smooth random values of mean 0 and standard deviation 1, periodic in all directions.
    """

    brain: VoxelGrid
    white: VoxelGrid
    inner: VoxelGrid
    skin: VoxelGrid
    soft: VoxelGrid
    texture: VoxelGrid


@lru_cache(maxsize=1)
def load_anatomy() -> HeadAnatomy:
    """Load the template and derive the rest of the head, once per process.

    Raises:
        UsageError: nilearn is not installed.
    """
    template, white = _load_templates()
    brain = np.rint(template.values * 255).astype(np.uint8)
    inner = _inner_distance(VoxelGrid(values=brain, origin=template.origin, step=1))
    texture = _texture()
    return HeadAnatomy(
        brain=VoxelGrid(values=brain, origin=template.origin, step=1),
        white=VoxelGrid(
            values=np.rint(white.values[::3, ::3, ::3] * 255).astype(np.uint8), origin=white.origin, step=3
        ),
        inner=inner,
        skin=_skin_distance(inner),
        soft=paint_soft_tissue(texture),
        texture=texture,
    )


def _load_templates() -> tuple[VoxelGrid, VoxelGrid]:
    """Return the brightness of the template and its fraction of white matter, float32 0 ... 1 at 1 mm."""
    try:
        from nilearn.datasets import load_mni152_template, load_mni152_wm_template
    except ImportError as error:
        raise UsageError(NILEARN_MISSING) from error
    volumes = []
    for image in (load_mni152_template(resolution=1), load_mni152_wm_template(resolution=1)):
        x, y, z = (float(start) for start in image.affine[:3, 3])
        volumes.append(VoxelGrid(values=np.asarray(image.dataobj, np.float32), origin=(x, y, z), step=1))
    return volumes[0], volumes[1]


def _coarse(values: np.ndarray) -> VoxelGrid:
    return VoxelGrid(values=values, origin=COARSE_ORIGIN, step=COARSE_MM, mode="nearest")


def _inner_distance(brain: VoxelGrid) -> VoxelGrid:
    """Close the furrows of the brain and return the distance to the closed surface."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    points_3P = np.stack(np.broadcast_arrays(*_coarse(np.empty(COARSE_SHAPE, np.uint8)).coordinates()))
    outside_mm = COARSE_MM * distance_transform_edt(brain.sample(points_3P) < 40)
    deep_mm = COARSE_MM * distance_transform_edt(outside_mm <= CLOSING_MM)
    signed = np.where(outside_mm <= CLOSING_MM, CLOSING_MM - deep_mm, outside_mm)
    return _coarse(gaussian_filter(signed.astype(np.float32), 1.2))


def _skin_distance(inner: VoxelGrid) -> VoxelGrid:
    """Merge face, nose, ears and neck smoothly with a hull around the skull."""
    points = inner.coordinates()
    skin = inner.values - np.float32(SCALP_MM)
    for centre, half in HEAD_SHAPES:
        other = ellipsoid_distance(points, centre, half)
        near = np.clip(0.5 + 0.5 * (other - skin) / SKIN_BLEND_MM, 0, 1)
        skin = other + near * (skin - other) - SKIN_BLEND_MM * near * (1 - near)
    return _coarse(skin.astype(np.float32))


def _texture() -> VoxelGrid:
    from scipy.ndimage import gaussian_filter

    white_noise = np.random.default_rng(1).standard_normal((48, 48, 48), np.float32)
    smooth = gaussian_filter(white_noise, 1.3, mode="wrap")
    return VoxelGrid(values=smooth / smooth.std(), origin=(0.0, 0.0, 0.0), step=3, mode="grid-wrap")
