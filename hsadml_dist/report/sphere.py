"""Project embeddings onto a map of the sphere, and draw the map and the angles to the class centres.

Shapes: N slices, D components, C classes, M rows of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from hsadml_dist.report.figure_text import class_labels
from hsadml_dist.report.formatting import degrees
from hsadml_dist.report.page import EmbeddedImage
from hsadml_dist.report.plot_style import COLOURS, FAINT, GRID, INK, MARKERS, WIDTH, new_figure, to_svg

_MAX_POINTS = 1500
_LEGEND_WIDTH = 76
"""Characters of a legend's row: the names, with five for each marker."""
_HISTOGRAM_STYLES: tuple[dict[str, Any], ...] = (
    {"label": "to the own class centre", "fill": True, "color": COLOURS[0], "alpha": 0.75},
    {"label": "to the nearest other centre", "color": COLOURS[1], "linestyle": (0, (5, 1.5))},
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SphereProjection:
    """Slices and class centres on a map, and the angles of each class in the full space.

    Attributes:
        point_N2: Longitude and latitude of each slice, radians.
        centre_C2: Longitude and latitude of each class centre, radians.
        explained: Share of the squared length along each of the three axes.
        dim: D, the embedding dimension.
        own_angle_C: Mean angle to the own centre, degrees; NaN for a class without slices.
        other_angle_C: Mean angle to the nearest other centre, degrees; NaN for a class without slices.
    """

    point_N2: Floats
    label_N: Ints
    centre_C2: Floats
    explained: tuple[float, float, float]
    count_C: Ints
    dim: int
    own_angle_C: Floats
    other_angle_C: Floats


def project_on_sphere(emb_ND: Floats, label_N: Ints, centre_CD: Floats) -> SphereProjection:
    """Project unit embeddings onto a sphere along their first three principal axes.

    The axes are those of the uncentred second moment of the unit embeddings, so that angles at the origin keep their
    meaning; the three components are scaled back to unit length. The first two axes span the equator, which is rotated
    so that its widest gap without points becomes the edge of the map. The arguments need not be normalised.
    """
    unit_ND, unit_CD = _unit(emb_ND), _unit(centre_CD)
    axes_D3, explained = _principal_axes(unit_ND)
    point_N2, centre_C2 = _angles(unit_ND @ axes_D3), _angles(unit_CD @ axes_D3)
    edge = _widest_gap(point_N2[:, 0])
    for map_M2 in (point_N2, centre_C2):
        map_M2[:, 0] = np.remainder(map_M2[:, 0] - edge, 2 * np.pi) - np.pi
    own_N, other_N = _centre_angles(unit_ND, label_N, unit_CD)
    count_C = np.bincount(label_N, minlength=len(centre_CD))
    return SphereProjection(
        point_N2=point_N2,
        label_N=label_N,
        centre_C2=centre_C2,
        explained=explained,
        count_C=count_C,
        dim=unit_ND.shape[1],
        own_angle_C=_class_means(own_N, label_N, count_C),
        other_angle_C=_class_means(other_N, label_N, count_C),
    )


def _unit(rows_MD: Floats) -> Floats:
    rows = np.asarray(rows_MD, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _principal_axes(unit_ND: Floats) -> tuple[Floats, tuple[float, float, float]]:
    values, vectors = np.linalg.eigh(unit_ND.T @ unit_ND)
    # eigh sorts ascending; a two-dimensional space gets a third axis of zeros.
    axes = np.zeros((unit_ND.shape[1], 3))
    shares = np.zeros(3)
    kept = min(3, unit_ND.shape[1])
    axes[:, :kept] = vectors[:, ::-1][:, :kept]
    shares[:kept] = np.clip(values[::-1][:kept], 0, None) / max(float(np.clip(values, 0, None).sum()), 1e-300)
    # The sign of an eigenvector is arbitrary; a positive largest component makes the map reproducible.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    first, second, third = (float(share) for share in shares)
    return axes * np.where(signs == 0, 1, signs), (first, second, third)


def _angles(point_M3: Floats) -> Floats:
    point_M3 = _unit(point_M3)
    longitude = np.arctan2(point_M3[:, 1], point_M3[:, 0])
    return np.stack([longitude, np.arcsin(np.clip(point_M3[:, 2], -1, 1))], axis=1)


def _widest_gap(longitude_N: Floats) -> float:
    """Return the longitude in the middle of the widest gap between neighbouring points."""
    if not len(longitude_N):
        return -np.pi
    ordered = np.sort(longitude_N)
    gaps = np.diff(ordered, append=ordered[0] + 2 * np.pi)
    widest = int(gaps.argmax())
    return float(ordered[widest] + gaps[widest] / 2)


def _centre_angles(unit_ND: Floats, label_N: Ints, unit_CD: Floats) -> tuple[Floats, Floats]:
    angle_NC = np.degrees(np.arccos(np.clip(unit_ND @ unit_CD.T, -1, 1)))
    rows = np.arange(len(label_N))
    own_N = angle_NC[rows, label_N]
    angle_NC[rows, label_N] = np.inf
    return own_N, angle_NC.min(axis=1)


def _class_means(value_N: Floats, label_N: Ints, count_C: Ints) -> Floats:
    total_C = np.bincount(label_N, weights=value_N, minlength=len(count_C))
    return np.where(count_C > 0, total_C / np.maximum(count_C, 1), np.nan)


@dataclass(frozen=True, kw_only=True)
class EvenSpread:
    """Angle in degrees between any two vertices of a regular simplex: centres as far apart as possible.

    Attributes:
        energy: Their hyperspherical energies ``s0``, ``s1`` and ``s2``, from angles in radians.
    """

    angle: float
    energy: Mapping[str, float]


def even_spread(classes: int, dim: int | None) -> EvenSpread | None:
    """Return the even spread of class centres; None if the dimension is unknown or too low for a regular simplex."""
    # A regular simplex of C vertices needs C - 1 dimensions.
    if dim is None or not 2 <= classes <= dim + 1:
        return None
    angle = math.acos(-1 / (classes - 1))
    energy = {"s0": -math.log(angle), "s1": 1 / angle, "s2": 1 / angle**2}
    return EvenSpread(angle=math.degrees(angle), energy=energy)


def draw_map(projection: SphereProjection, names: Sequence[str], shown: Sequence[int]) -> EmbeddedImage:
    """Draw the slices and centres of the classes ``shown`` on a Mollweide map, all other slices as grey dots."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.add_subplot(projection="mollweide")
    axes.set_axisbelow(True)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set(xticklabels=[], yticklabels=[])
    others = _thinned(projection.point_N2[~np.isin(projection.label_N, shown)], _MAX_POINTS)
    axes.scatter(others[:, 0], others[:, 1], s=5, linewidths=0, color=FAINT, marker="o")
    keys, labels = [], class_labels(names)
    for place, label in enumerate(shown):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        points = _thinned(projection.point_N2[projection.label_N == label], _MAX_POINTS // len(shown))
        axes.scatter(points[:, 0], points[:, 1], s=13, alpha=0.55, linewidths=0, color=colour, marker=marker)
        style: dict[str, Any] = {"edgecolors": INK, "linewidths": 1.8, "facecolors": colour, "marker": marker}
        longitude, latitude = projection.centre_C2[label]
        axes.scatter(longitude, latitude, s=170, zorder=5, **style)
        keys.append(Line2D([], [], linestyle="", markersize=7, color=colour, marker=marker, label=labels[label]))
    longest = max(len(labels[label]) for label in shown)
    columns = max(1, min(4, len(shown), _LEGEND_WIDTH // (longest + 5)))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    angles = "; ".join(f"{names[label]} {projection.own_angle_C[label]:.0f} degrees" for label in shown)
    return to_svg(figure, f"Map of the sphere of embeddings; mean angle of each class to its own centre: {angles}.")


def draw_angle_histogram(geometry: Mapping[str, Any]) -> EmbeddedImage:
    """Draw the histograms of the angles from slices to their own centre and to the nearest other one."""
    width = geometry["histogram"]["bin_degrees"]
    own, other = (_nonempty_bins(geometry["histogram"][name]) for name in ("own_centre", "other_centre"))
    figure, axes = new_figure(WIDTH, 3.0)
    for (first, counts), style in zip((own, other), _HISTOGRAM_STYLES, strict=True):
        edges = [width * (first + place) for place in range(len(counts) + 1)]
        axes.stairs(counts, edges, linewidth=2, **style)
    last = max(width * (first + len(counts)) for first, counts in (own, other))
    axes.set(xlim=(0, min(180, 15 * math.ceil((last + 5) / 15))), xlabel="angle", ylabel="slices")
    axes.xaxis.set_major_locator(MultipleLocator(15))
    axes.xaxis.set_major_formatter("{x:.0f}°")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    mean_own, mean_other = (degrees(geometry["overall"][key]) for key in ("own_centre", "other_centre"))
    means = f"mean {mean_own} to the own centre, {mean_other} to the nearest other"
    return to_svg(figure, f"Two histograms of angles between slices and class centres: {means}.")


def _nonempty_bins(counts: Sequence[int]) -> tuple[int, Sequence[int]]:
    """Return the index of the first bin with slices, and the counts from there to the last such bin."""
    places = [place for place, count in enumerate(counts) if count]
    return (places[0], counts[places[0] : places[-1] + 1]) if places else (0, [0])


def _thinned(point_N2: Floats, limit: int) -> Floats:
    """Return at most ``limit`` points, evenly spaced in the given order."""
    if len(point_N2) <= limit:
        return point_N2
    return point_N2[np.linspace(0, len(point_N2) - 1, limit).round().astype(int)]
