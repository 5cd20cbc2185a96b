"""The head that every generated patient is bent from: a real average brain, and a skull, skin and face made around it.

The brain is the ICBM 2009a nonlinear symmetric template (V. Fonov et al., NeuroImage 54, 2011, 313-327), as nilearn
ships it: an average of 152 healthy adults, without skull. What lies around it follows from its distance map and from
a few ellipsoids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.sources.phantom.face import HEAD_SHAPES, paint_soft_tissue
from hsadml_dist.shards.sources.phantom.source import NEEDS_NILEARN
from hsadml_dist.shards.sources.phantom.volume import VoxelGrid, ellipsoid_distance

COARSE_MM = 3
COARSE_ORIGIN = (-96.0, -138.0, -156.0)
COARSE_SHAPE = (65, 88, 88)
CLOSING_MM = 14.0
"""Furrows narrower than twice this are bridged by the inner surface of the skull."""
SCALP_MM = 12.5
"""From the inner surface of the skull to the skin."""
SKIN_BLEND_MM = 12.0
"""How softly face, neck and skull run into each other."""


@dataclass(frozen=True, kw_only=True)
class HeadAnatomy:
    """Volumes over the undeformed head.

    Attributes:
        brain: The template's brightness, uint8, 0 outside the brain.
        white: Share of white matter, uint8 0 ... 255, on every third voxel.
        inner: Distance to the skull's inner surface in millimetres, negative inside.
        skin: Distance to the skin in millimetres, negative inside.
        soft: Brightness of what lies outside the skull, uint8.
        texture: Smooth random values of mean 0 and deviation 1, without end in all directions.
    """

    brain: VoxelGrid
    white: VoxelGrid
    inner: VoxelGrid
    skin: VoxelGrid
    soft: VoxelGrid
    texture: VoxelGrid


@lru_cache(maxsize=1)
def load_anatomy() -> HeadAnatomy:
    """Load the template and make the rest of the head, once a process.

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
    """Return the template's brightness and its share of white matter, float32 0 ... 1 at 1 mm."""
    try:
        from nilearn.datasets import load_mni152_template, load_mni152_wm_template
    except ImportError as error:
        raise UsageError(NEEDS_NILEARN) from error
    volumes = []
    for image in (load_mni152_template(resolution=1), load_mni152_wm_template(resolution=1)):
        x, y, z = (float(start) for start in image.affine[:3, 3])
        volumes.append(VoxelGrid(values=np.asarray(image.dataobj, np.float32), origin=(x, y, z), step=1))
    return volumes[0], volumes[1]


def _coarse(values: np.ndarray) -> VoxelGrid:
    return VoxelGrid(values=values, origin=COARSE_ORIGIN, step=COARSE_MM, mode="nearest")


def _inner_distance(brain: VoxelGrid) -> VoxelGrid:
    """Close the brain's furrows and return the distance to the surface that remains."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    places = np.stack(np.broadcast_arrays(*_coarse(np.empty(COARSE_SHAPE, np.uint8)).places()))
    outside_mm = COARSE_MM * distance_transform_edt(brain.at(places) < 40)
    deep_mm = COARSE_MM * distance_transform_edt(outside_mm <= CLOSING_MM)
    signed = np.where(outside_mm <= CLOSING_MM, CLOSING_MM - deep_mm, outside_mm)
    return _coarse(gaussian_filter(signed.astype(np.float32), 1.2))


def _skin_distance(inner: VoxelGrid) -> VoxelGrid:
    """Melt face, nose, ears and neck into a hull around the skull."""
    places = inner.places()
    skin = inner.values - np.float32(SCALP_MM)
    for centre, half in HEAD_SHAPES:
        other = ellipsoid_distance(places, centre, half)
        near = np.clip(0.5 + 0.5 * (other - skin) / SKIN_BLEND_MM, 0, 1)
        skin = other + near * (skin - other) - SKIN_BLEND_MM * near * (1 - near)
    return _coarse(skin.astype(np.float32))


def _texture() -> VoxelGrid:
    from scipy.ndimage import gaussian_filter

    white_noise = np.random.default_rng(1).standard_normal((48, 48, 48), np.float32)
    smooth = gaussian_filter(white_noise, 1.3, mode="wrap")
    return VoxelGrid(values=smooth / smooth.std(), origin=(0.0, 0.0, 0.0), step=3, mode="grid-wrap")
