"""Render one slice of a generated patient: geometry, tissues, vessels, tumour, scanner.

Shapes in names: ``_3P`` coordinates and ``_P`` one value per pixel, both with trailing axes (size, size); ``_3N``
coordinates of a coarse grid. Brightness: about 0 ... 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hsadml_dist.shards.source import SourcePixels
from hsadml_dist.shards.sources.phantom.head_anatomy import HeadAnatomy, load_anatomy
from hsadml_dist.shards.sources.phantom.lesion import Lesion, make_lesion
from hsadml_dist.shards.sources.phantom.patient import (
    AXES,
    MAX_SLICES,
    PhantomPatient,
    Stream,
    make_pose,
    scanner_points,
)
from hsadml_dist.shards.sources.phantom.scanner import SITES, Contrast, make_contrast, scan

BONE = 0.05
MAX_NODES = 64
"""Smooth maps are computed on at most this many nodes per side, and interpolated between them."""
SLICE_SPACING_MM = 6.5
"""Usual distance between neighbouring slices: 6 mm thick, with a small gap."""
TUMOUR_QUANTILES = (0.07, 0.93)
"""Quantiles of the tumour's volume along the axis between which slices are placed."""
TEMPLATE_LEVELS = (0, 70, 158, 210, 255)
"""Template brightness of air, fluid, grey matter, white matter and the brightest white matter."""


@dataclass(frozen=True, kw_only=True)
class RenderedHead:
    """A slice during rendering: its image, and for each pixel the geometry it was rendered from.

    Attributes:
        image_P: Brightness.
        points_3P: Template coordinates.
        tissue_P: Template brightness, 0 ... 255, after displacement by the tumour.
        inner_P: Distance to the inner surface of the skull in millimetres, negative inside.
    """

    image_P: np.ndarray
    points_3P: np.ndarray
    tissue_P: np.ndarray
    inner_P: np.ndarray


def render_slice(patient: PhantomPatient, slice_number: int, size: int) -> SourcePixels:
    """Return image, float32 (size, size), about 0 ... 1.2, and mask of the lesion, uint8 (size, size), 1 inside."""
    anatomy, lesion = load_anatomy(), make_lesion(patient)
    contrast = exam_contrast(patient, patient.exams[slice_number])
    points_3P, brain_3P = slice_points(patient, slice_number, size)
    head = _render_head(anatomy, contrast, points_3P, brain_3P)
    _add_vessels(head, contrast, anatomy, float(lesion.texture_offset[0]))
    mask = _add_lesion(head, anatomy, lesion, contrast)
    image = scan(head.image_P, SITES[patient.site], contrast, patient.stream(Stream.SLICE, slice_number))
    return SourcePixels(image=image, mask=mask)


@lru_cache(maxsize=64)
def exam_contrast(patient: PhantomPatient, exam: int) -> Contrast:
    """Return the brightness of tissues in one exam."""
    return make_contrast(patient.stream(Stream.CONTRAST), patient.stream(Stream.CONTRAST, 1 + exam))


@lru_cache(maxsize=64)
def slice_levels(patient: PhantomPatient, exam: int, plane: str) -> tuple[float, ...]:
    """Return the scanner coordinates, in millimetres, of the slices of one exam and plane; all cut the tumour."""
    count = sum(series == (exam, plane) for series in zip(patient.exams, patient.planes, strict=True))
    inside_3P = make_lesion(patient).points_inside(load_anatomy())
    along = make_pose(patient, exam).to_scanner(inside_3P)[AXES[plane]]
    low, high = (float(end) for end in np.quantile(along, TUMOUR_QUANTILES))
    step = min(SLICE_SPACING_MM, (high - low) / max(count - 1, 1))
    rng = patient.stream(Stream.SLICE, MAX_SLICES + 3 * exam + AXES[plane])
    start = low + (high - low - step * (count - 1)) * float(rng.random())
    return tuple(start + step * index for index in range(count))


def slice_points(patient: PhantomPatient, slice_number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the template coordinates of each pixel, and those that its brain tissue is taken from."""
    exam, plane = patient.exams[slice_number], patient.planes[slice_number]
    level = slice_levels(patient, exam, plane)[patient.index_in_series(slice_number)]
    nodes = min(size, MAX_NODES) + 1
    axis = np.linspace(-0.5, 0.5, nodes, dtype=np.float32)
    across_N, down_N = np.tile(axis, nodes), np.repeat(axis, nodes)
    pose = make_pose(patient, exam)
    points_3N = pose.to_template(scanner_points(plane, level, patient.site, across_N, down_N))
    brain_3N = pose.scale_ventricles(make_lesion(patient).undo_displacement(points_3N))
    points_3P, brain_3P = (_upsample(grid_3N.reshape(3, nodes, nodes), size) for grid_3N in (points_3N, brain_3N))
    return points_3P, brain_3P


def _upsample(grid_3N: np.ndarray, size: int) -> np.ndarray:
    """Interpolate a grid (..., nodes, nodes) that spans the corners of the image at the centre of each pixel."""
    nodes = grid_3N.shape[-1]
    at = (np.arange(size, dtype=np.float32) + 0.5) * ((nodes - 1) / size)
    low = np.minimum(at.astype(np.intp), nodes - 2)
    part = (at - low).astype(np.float32)
    rows = grid_3N[:, low] + part[:, None] * (grid_3N[:, low + 1] - grid_3N[:, low])
    return np.asarray(rows[..., low] + part * (rows[..., low + 1] - rows[..., low]), np.float32)


def _render_head(anatomy: HeadAnatomy, contrast: Contrast, points_3P: np.ndarray, brain_3P: np.ndarray) -> RenderedHead:
    """Render from outside to inside: soft tissue, subcutaneous fat, skull, brain."""
    skin_P, inner_P = anatomy.skin.sample(points_3P), anatomy.inner.sample(points_3P)
    tissue_P = anatomy.brain.sample(brain_3P)
    image = anatomy.soft.sample(points_3P) / np.float32(255)
    image *= 1 + (contrast.fat - 1) * np.clip(2 * image - 0.5, 0, 1)
    grain = anatomy.texture.sample(points_3P * np.float32(0.5))
    fat_mm = contrast.fat_mm * (1 + 0.15 * grain)
    _blend(image, _coverage(-skin_P - fat_mm), contrast.fat)
    _blend(image, _coverage(-skin_P - 1.5), 0.75 * contrast.fat)
    above = np.clip((points_3P[2] - 0.12 * points_3P[1] + 48) / 6, 0, 1)
    middle = 0.5 * contrast.skull_mm
    bone = BONE + (contrast.marrow - BONE) * np.exp(-(((inner_P - middle) / (0.23 * contrast.skull_mm)) ** 2))
    _blend(image, above * _coverage(inner_P - contrast.skull_mm), bone)
    levels = (contrast.fluid, contrast.fluid, contrast.grey, contrast.white, 1.05 * contrast.white)
    brain = np.interp(tissue_P, TEMPLATE_LEVELS, levels) * (1 + 0.02 * grain)
    _blend(image, _coverage(inner_P - 0.5), brain)
    image *= _coverage(skin_P)
    return RenderedHead(image_P=image, points_3P=points_3P, tissue_P=tissue_P, inner_P=inner_P)


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Return 1 where ``distance`` in millimetres is negative and 0 where positive, with an edge 1.2 mm wide."""
    return np.clip(0.5 - distance / np.float32(1.2), 0, 1)


def _blend(image: np.ndarray, weight: np.ndarray, value: float | np.ndarray) -> None:
    image += weight * (value - image)


def _add_vessels(head: RenderedHead, contrast: Contrast, anatomy: HeadAnatomy, offset: float) -> None:
    """Brighten the sinuses, the falx and a few veins in the furrows, so that brightness alone identifies no tumour."""
    x, y, z = head.points_3P
    deep = head.inner_P
    sagittal = _coverage(np.abs(x) - 3.2 - 0.6 * deep) * _coverage(np.abs(deep + 1.5) - 3.5) * (z > -22) * (y < 45)
    across = _coverage(np.hypot(z + 20 + 0.08 * (y + 90), deep + 1) - 3.6 * np.clip((-28 - y) / 18, -0.5, 1))
    falx = 0.35 * _coverage(np.abs(x) - 0.5) * (deep > -26) * (deep < 0) * (z > 0)
    dura = 0.3 * _coverage(np.abs(deep - 0.3) - 0.5)
    veins = anatomy.texture.sample(head.points_3P * np.float32(1.4) + np.float32(offset))
    veins = np.clip(veins - 1.25, 0, 1) * 1.6
    veins *= (deep < -0.5) * (deep > -30) * np.clip((150 - head.tissue_P) / 40, 0, 1)
    for coverage in (np.maximum(falx, dura), np.clip(veins, 0, 1), np.maximum(sagittal, across)):
        _blend(head.image_P, coverage, contrast.vessel)


def _add_lesion(head: RenderedHead, anatomy: HeadAnatomy, lesion: Lesion, contrast: Contrast) -> np.ndarray:
    """Draw the tumour and its oedema, and return the mask of the tumour."""
    size = head.image_P.shape[0]
    window = _lesion_window(head.points_3P, lesion)
    points_3P, image, inner = head.points_3P[:, *window], head.image_P[window], head.inner_P[window]
    depth = lesion.depth(points_3P, anatomy)
    oedema = np.clip(1 + depth / (0.8 * lesion.radius), 0, 1) * _coverage(inner + 2)
    image *= 1 - lesion.oedema * oedema * np.clip((head.tissue_P[window] - 120) / 60, 0, 1)
    if lesion.class_name == "meningioma":
        dural_tail = _coverage(np.abs(inner - 0.2) - 1.2) * np.clip(1.4 + depth / (0.7 * lesion.radius), 0, 1)
        _blend(image, 0.8 * dural_tail, contrast.vessel)
    _blend(image, _coverage(-depth), lesion.brightness(depth, points_3P, anatomy))
    mask = np.zeros((size, size), np.uint8)
    mask[window] = depth > 0
    # Each slice cuts the tumour, even if no pixel centre of a coarse image is inside it.
    mask[window][np.unravel_index(depth.argmax(), depth.shape)] = 1
    return mask


def _lesion_window(points_3P: np.ndarray, lesion: Lesion) -> tuple[slice, slice]:
    """Return a part of the image that contains the tumour and its oedema."""
    near = ((points_3P - lesion.centre[:, None, None]) ** 2).sum(0) < lesion.reach_mm**2
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
