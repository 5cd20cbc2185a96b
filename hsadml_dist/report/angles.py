"""The section on angles: how far slices stand from their own centre and from the nearest other one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MultipleLocator

from hsadml_dist.report.drawing import COLOURS, GRID, WIDTH, EmbeddedImage, new_figure, to_svg
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import MOST_CLASSES, ReportSection, degrees, left_out, shown, square_heads
from hsadml_dist.report.wording import NONE, counted

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
