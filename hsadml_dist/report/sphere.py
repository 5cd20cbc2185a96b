"""Project embeddings onto a map of the sphere, and report the angles between slices and class centres.

Shapes: N slices, D components, C classes, M rows of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MultipleLocator

from hsadml_dist.report.formatting import NONE, counted
from hsadml_dist.report.neighbour_examples import MOST_CLASSES, ReportSection, degrees, left_out, shown, square_heads
from hsadml_dist.report.page import Table
from hsadml_dist.report.plot_style import COLOURS, GRID, WIDTH, EmbeddedImage, new_figure, to_svg

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SphereProjection:
    """Points and centres on a map, and each class's angles in the full space.

    Attributes:
        point_N2: Longitude and latitude of each slice, radians.
        label_N: Class of each slice, int64.
        centre_C2: Longitude and latitude of each class centre, radians.
        explained: Share of the squared length that each of the three axes holds.
        count_C: Slices of each class, int64.
        dim: D, the components of the embeddings.
        own_angle_C: Mean angle to the own centre, degrees; NaN where a class has no slice.
        other_angle_C: Mean angle to the nearest other centre, degrees; NaN likewise.
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
    """Return the map of unit embeddings along their first three principal axes.

    The axes are those of the uncentred second moment of the unit embeddings, so that an angle to the origin keeps its
    meaning; the three components are scaled back to unit length. The first two axes span the equator, which is turned
    so that its widest gap without points becomes the edge of the map.
    """
    unit_ND, unit_CD = _unit(emb_ND), _unit(centre_CD)
    axes_D3, explained = _principal_axes(unit_ND)
    point_N2, centre_C2 = _angles(unit_ND @ axes_D3), _angles(unit_CD @ axes_D3)
    turn = _widest_gap(point_N2[:, 0])
    for map_M2 in (point_N2, centre_C2):
        map_M2[:, 0] = np.remainder(map_M2[:, 0] - turn, 2 * np.pi) - np.pi
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
    # eigh counts upwards; a space of two dimensions gets a third axis that holds nothing.
    axes = np.zeros((unit_ND.shape[1], 3))
    shares = np.zeros(3)
    kept = min(3, unit_ND.shape[1])
    axes[:, :kept] = vectors[:, ::-1][:, :kept]
    shares[:kept] = np.clip(values[::-1][:kept], 0, None) / max(float(np.clip(values, 0, None).sum()), 1e-300)
    # An eigenvector's sign is free: the largest component is made positive, so that the map is the same each time.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    first, second, third = (float(share) for share in shares)
    return axes * np.where(signs == 0, 1, signs), (first, second, third)


def _angles(point_M3: Floats) -> Floats:
    point_M3 = _unit(point_M3)
    longitude = np.arctan2(point_M3[:, 1], point_M3[:, 0])
    return np.stack([longitude, np.arcsin(np.clip(point_M3[:, 2], -1, 1))], axis=1)


def _widest_gap(longitude_N: Floats) -> float:
    """Return the longitude in the middle of the widest gap between neighbouring points."""
    if len(longitude_N) == 0:
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


_LOOKS: tuple[dict[str, Any], ...] = (
    {"label": "to the own class's centre", "fill": True, "color": COLOURS[0], "alpha": 0.75},
    {"label": "to the nearest other centre", "color": COLOURS[1], "linestyle": (0, (5, 1.5))},
)


def angles_section(result: Mapping[str, Any], dim: int | None) -> ReportSection:
    """Return the section on ``result["geometry"]``; ``dim``: components of the embeddings, where known."""
    found, names = result["geometry"], result["classes"]
    labels = shown([one["slices"] for one in found["per_class"]])
    tables = [_classes_table(found, names, labels)]
    if len(names) > MOST_CLASSES:
        tables += _spread_tables(found["spread"], names) if found.get("spread") else []
    elif found["centre_angles"] is not None and len(names) > 1:
        tables.append(_centres_table(found["centre_angles"], names))
    tables.append(_energy_table(found["energy"], len(names), dim))
    text = (
        "Angles between test slices and class centres, in the full space. The further the two heaps stand apart, the"
        " clearer the classes; a slice that lies nearer to another centre than to its own is taken for that class."
    )
    if found["paired"] < result["slices"]:
        text += f" Angles between slices are of {counted(found['paired'], 'slice')}, drawn by class."
    text += left_out(len(names), len(labels))
    return ReportSection(title="Angles", text=text, picture=_draw_angle_histogram(found), tables=tables)


def even_angle(classes: int) -> float:
    """Return the degrees between centres that all stand equally far apart, as far as can be: a regular simplex."""
    return math.degrees(math.acos(-1 / (classes - 1)))


def _classes_table(found: Mapping[str, Any], names: Sequence[str], labels: Sequence[int]) -> Table:
    def row(name: str, one: Mapping[str, Any]) -> list[str]:
        measured = (one[key] for key in ("own_centre", "other_centre", "within", "between"))
        return [name, f"{one['slices']:,}", *(degrees(angle) for angle in measured)]

    rows = [row(names[label], found["per_class"][label]) for label in labels]
    head = ("class", "slices", "own centre", "nearest other centre", "slices of the class", "slices of others")
    overall = row("all", found["overall"])
    return Table(caption="Mean angle of a test slice to ...", head=head, rows=[*rows, overall])


def _centres_table(angle_CC: Sequence[Sequence[float]], names: Sequence[str]) -> Table:
    row_names, columns = square_heads(names)
    digits = 1 if columns == row_names else 0
    rows = [
        [name, *(NONE if row == column else f"{angle:.{digits}f}°" for column, angle in enumerate(angle_CC[row]))]
        for row, name in enumerate(row_names)
    ]
    return Table(caption="Angles between class centres", head=("centre", *columns), rows=rows)


def _spread_tables(spread: Mapping[str, Any], names: Sequence[str]) -> list[Table]:
    """Return what is said of the centres' angles where a table of each by each would have too many rows."""
    figures = [
        ["nearest two centres", degrees(spread["nearest"][0]["angle"])],
        ["from a centre to the one nearest to it, mean", degrees(spread["neighbour"])],
        ["mean over all pairs", degrees(spread["mean"])],
        ["farthest two centres", degrees(spread["most"])],
    ]
    pairs = [[names[one["first"]], names[one["second"]], degrees(one["angle"])] for one in spread["nearest"]]
    return [
        Table(caption=f"Angles between the {len(names):,} class centres", head=("what", "angle"), rows=figures),
        Table(caption="Centres nearest to each other", head=("centre", "centre", "angle"), rows=pairs),
    ]


def _energy_table(energy: Mapping[str, float] | None, classes: int, dim: int | None) -> Table:
    # A regular simplex of C centres needs C - 1 dimensions.
    is_even = dim is not None and 2 <= classes <= dim + 1
    far = math.radians(even_angle(classes)) if is_even else math.nan
    even = {"s0": -math.log(far), "s1": 1 / far, "s2": 1 / far**2} if is_even else {}
    terms = {"s0": "logarithm of 1 / angle", "s1": "1 / angle", "s2": "1 / angle squared"}
    rows = [
        [
            f"energy {name}",
            NONE if energy is None else f"{energy[name]:.3f}",
            f"{even[name]:.3f}" if is_even else NONE,
            f"{term}, mean over pairs of centres",
        ]
        for name, term in terms.items()
    ]
    apart = f" ({even_angle(classes):.1f}° apart)" if is_even else ""
    head = ("what", "here", f"evenly spread centres{apart}", "meaning")
    return Table(
        caption="Hyperspherical energy of the centres, angles in radians: less is more even", head=head, rows=rows
    )


def _draw_angle_histogram(found: Mapping[str, Any]) -> EmbeddedImage:
    width = found["histogram"]["bin_degrees"]
    own, other = (_filled(found["histogram"][name]) for name in ("own_centre", "other_centre"))
    figure, axes = new_figure(WIDTH, 3.0)
    for (first, counts), look in zip((own, other), _LOOKS, strict=True):
        edges = [width * (first + place) for place in range(len(counts) + 1)]
        axes.stairs(counts, edges, linewidth=2, **look)
    last = max(width * (first + len(counts)) for first, counts in (own, other))
    axes.set_xlim(0, min(180, 15 * math.ceil((last + 5) / 15)))
    axes.xaxis.set_major_locator(MultipleLocator(15))
    axes.xaxis.set_major_formatter("{x:.0f}°")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_ylabel("slices")
    axes.set_xlabel("angle")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    mean_own, mean_other = (degrees(found["overall"][key]) for key in ("own_centre", "other_centre"))
    words = f"mean {mean_own} to the own centre, {mean_other} to the nearest other"
    return to_svg(figure, f"Two histograms of angles between slices and class centres: {words}.")


def _filled(counts: Sequence[int]) -> tuple[int, Sequence[int]]:
    """Return the first bin with slices in it, and the counts from there to the last such bin."""
    places = [place for place, count in enumerate(counts) if count]
    return (places[0], counts[places[0] : places[-1] + 1]) if places else (0, [0])
