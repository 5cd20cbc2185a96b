"""Drawing one slice of a generated patient: places, tissues, vessels, tumour, scanner.

Shapes in names: ``_3P`` places and ``_P`` one value a pixel, both (size, size) behind; ``_3N`` places of a coarse net.
Brightness: about 0 ... 1.
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
    MOST_SLICES,
    PhantomPatient,
    Stream,
    make_pose,
    scanner_places,
)
from hsadml_dist.shards.sources.phantom.scanner import SITES, Contrast, make_contrast, scan

BONE = 0.05
MOST_NODES = 64
"""Smooth maps are worked out on at most so many nodes a side, and read between them."""
STEP_MM = 6.5
"""Usual distance between neighbouring slices: 6 mm thick, with a small gap."""
USED = (0.07, 0.93)
"""The part of the tumour's volume, along the axis, between whose ends slices are cut."""
TEMPLATE = (0, 70, 158, 210, 255)
"""The template's brightness of air, fluid, grey matter, white matter and the brightest white matter."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The slice under the brush: brightness, and for each pixel where it lies and what the head holds there.

    Attributes:
        image_P: Brightness.
        places_3P: The template's place of each pixel.
        tissue_P: The template's brightness, 0 ... 255, once the tumour has pushed the brain aside.
        inner_P: Distance to the skull's inner surface in millimetres, negative inside.
    """

    image_P: np.ndarray
    places_3P: np.ndarray
    tissue_P: np.ndarray
    inner_P: np.ndarray


def render_slice(person: PhantomPatient, number: int, size: int) -> SourcePixels:
    """Draw slice ``number`` of ``person``.

    Returns:
        The image, float32 (size, size), about 0 ... 1.2, and the lesion's mask, uint8 (size, size), 1 inside.
    """
    anatomy, lesion = load_anatomy(), make_lesion(person)
    contrast = exam_contrast(person, person.exams[number])
    places_3P, brain_3P = slice_places(person, number, size)
    canvas = _head(anatomy, contrast, places_3P, brain_3P)
    _add_vessels(canvas, contrast, anatomy, float(lesion.drift[0]))
    mask = _add_lesion(canvas, anatomy, lesion, contrast)
    image = scan(canvas.image_P, SITES[person.site], contrast, person.stream(Stream.SLICE, number))
    return SourcePixels(image=image, mask=mask)


@lru_cache(maxsize=64)
def exam_contrast(person: PhantomPatient, exam: int) -> Contrast:
    """Return the brightness of tissues in one exam."""
    return make_contrast(person.stream(Stream.CONTRAST), person.stream(Stream.CONTRAST, 1 + exam))


@lru_cache(maxsize=64)
def slice_levels(person: PhantomPatient, exam: int, plane: str) -> tuple[float, ...]:
    """Return where one exam's slices in one plane are cut, in the scanner's millimetres: all through the tumour."""
    count = sum(kind == (exam, plane) for kind in zip(person.exams, person.planes, strict=True))
    lesion = make_lesion(person)
    inside_3P = lesion.places_inside(load_anatomy())
    along = make_pose(person, exam).to_scanner(inside_3P)[AXES[plane]]
    low, high = (float(end) for end in np.quantile(along, USED))
    step = min(STEP_MM, (high - low) / max(count - 1, 1))
    rng = person.stream(Stream.SLICE, MOST_SLICES + 3 * exam + AXES[plane])
    start = low + (high - low - step * (count - 1)) * float(rng.random())
    return tuple(start + step * place for place in range(count))


def slice_places(person: PhantomPatient, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's place in the template, and the place that its brain tissue was taken from."""
    exam, plane = person.exams[number], person.planes[number]
    level = slice_levels(person, exam, plane)[person.place_in_series(number)]
    nodes = min(size, MOST_NODES) + 1
    net = np.linspace(-0.5, 0.5, nodes, dtype=np.float32)
    across_N, down_N = np.tile(net, nodes), np.repeat(net, nodes)
    pose = make_pose(person, exam)
    places_3N = pose.to_template(scanner_places(plane, level, person.site, across_N, down_N))
    brain_3N = pose.ventricles(make_lesion(person).push_aside(places_3N))
    return tuple(_enlarge(net_3N.reshape(3, nodes, nodes), size) for net_3N in (places_3N, brain_3N))  # type: ignore[return-value]


def _enlarge(net_3N: np.ndarray, size: int) -> np.ndarray:
    """Read a net (..., nodes, nodes) that spans the picture's corners at the middle of each pixel."""
    nodes = net_3N.shape[-1]
    at = (np.arange(size, dtype=np.float32) + 0.5) * ((nodes - 1) / size)
    low = np.minimum(at.astype(np.intp), nodes - 2)
    part = (at - low).astype(np.float32)
    rows = net_3N[:, low] + part[:, None] * (net_3N[:, low + 1] - net_3N[:, low])
    return np.asarray(rows[..., low] + part * (rows[..., low + 1] - rows[..., low]), np.float32)


def _head(anatomy: HeadAnatomy, contrast: Contrast, places_3P: np.ndarray, brain_3P: np.ndarray) -> Canvas:
    """Paint, from outside to inside: soft tissue, the fat under the skin, the skull, the brain."""
    skin_P, inner_P, tissue_P = (anatomy.skin.at(places_3P), anatomy.inner.at(places_3P), anatomy.brain.at(brain_3P))
    image = anatomy.soft.at(places_3P) / np.float32(255)
    image *= 1 + (contrast.fat - 1) * np.clip(2 * image - 0.5, 0, 1)
    grain = anatomy.texture.at(places_3P * np.float32(0.5))
    fat_mm = contrast.fat_mm * (1 + 0.15 * grain)
    _blend(image, _cover(-skin_P - fat_mm), contrast.fat)
    _blend(image, _cover(-skin_P - 1.5), 0.75 * contrast.fat)
    above = np.clip((places_3P[2] - 0.12 * places_3P[1] + 48) / 6, 0, 1)
    middle = 0.5 * contrast.skull_mm
    bone = BONE + (contrast.marrow - BONE) * np.exp(-(((inner_P - middle) / (0.23 * contrast.skull_mm)) ** 2))
    _blend(image, above * _cover(inner_P - contrast.skull_mm), bone)
    brain = np.interp(tissue_P, TEMPLATE, _tones(contrast)) * (1 + 0.02 * grain)
    _blend(image, _cover(inner_P - 0.5), brain)
    image *= _cover(skin_P)
    return Canvas(image_P=image, places_3P=places_3P, tissue_P=tissue_P, inner_P=inner_P)


def _tones(contrast: Contrast) -> tuple[float, ...]:
    return contrast.fluid, contrast.fluid, contrast.grey, contrast.white, 1.05 * contrast.white


def _cover(distance: np.ndarray) -> np.ndarray:
    """Return 1 where ``distance`` in millimetres is negative and 0 where positive, with an edge 1.2 mm wide."""
    return np.clip(0.5 - distance / np.float32(1.2), 0, 1)


def _blend(image: np.ndarray, weight: np.ndarray, value: float | np.ndarray) -> None:
    image += weight * (value - image)


def _add_vessels(canvas: Canvas, contrast: Contrast, anatomy: HeadAnatomy, drift: float) -> None:
    """Brighten the sinuses, the falx and a few veins in the furrows: brightness alone tells no tumour."""
    x, y, z = canvas.places_3P
    deep = canvas.inner_P
    sagittal = _cover(np.abs(x) - 3.2 - 0.6 * deep) * _cover(np.abs(deep + 1.5) - 3.5) * (z > -22) * (y < 45)
    across = _cover(np.hypot(z + 20 + 0.08 * (y + 90), deep + 1) - 3.6 * np.clip((-28 - y) / 18, -0.5, 1))
    falx = 0.35 * _cover(np.abs(x) - 0.5) * (deep > -26) * (deep < 0) * (z > 0)
    dura = 0.3 * _cover(np.abs(deep - 0.3) - 0.5)
    veins = np.clip(anatomy.texture.at(canvas.places_3P * np.float32(1.4) + np.float32(drift)) - 1.25, 0, 1) * 1.6
    veins *= (deep < -0.5) * (deep > -30) * np.clip((150 - canvas.tissue_P) / 40, 0, 1)
    for cover in (np.maximum(falx, dura), np.clip(veins, 0, 1), np.maximum(sagittal, across)):
        _blend(canvas.image_P, cover, contrast.vessel)


def _add_lesion(canvas: Canvas, anatomy: HeadAnatomy, lesion: Lesion, contrast: Contrast) -> np.ndarray:
    """Draw the tumour and the swelling around it, and return its mask."""
    size = canvas.image_P.shape[0]
    window = _window(canvas.places_3P, lesion)
    places_3P, image, inner = canvas.places_3P[:, *window], canvas.image_P[window], canvas.inner_P[window]
    depth = lesion.depth(places_3P, anatomy)
    swollen = np.clip(1 + depth / (0.8 * lesion.radius), 0, 1) * _cover(inner + 2)
    image *= 1 - lesion.swelling * swollen * np.clip((canvas.tissue_P[window] - 120) / 60, 0, 1)
    if lesion.class_name == "meningioma":
        tail = _cover(np.abs(inner - 0.2) - 1.2) * np.clip(1.4 + depth / (0.7 * lesion.radius), 0, 1)
        _blend(image, 0.8 * tail, contrast.vessel)
    _blend(image, _cover(-depth), lesion.brightness(depth, places_3P, anatomy))
    mask = np.zeros((size, size), np.uint8)
    mask[window] = depth > 0
    mask[window][np.unravel_index(depth.argmax(), depth.shape)] = 1  # however coarse the pixels, each slice cuts it
    return mask


def _window(places_3P: np.ndarray, lesion: Lesion) -> tuple[slice, slice]:
    """Return the part of the picture that surely holds the tumour and its swelling."""
    near = ((places_3P - lesion.centre[:, None, None]) ** 2).sum(0) < lesion.reach_mm**2
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
