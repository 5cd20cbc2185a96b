"""Plot the curves of every loss: psi of the target cosine and eta of the other cosines, and the slopes of both.

    python examples/loss_curves.py --out docs/losses.png

The curves come from the code that training uses (``hsadml_dist.losses.margins``), with the defaults of each paper.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hsadml_dist.losses.margins import LOSSES, Annealing, Margin, MarginSettings, build_margin
from hsadml_dist.report.plot_style import COLOURS, FAINT, GRID, INK, style_axes

DEGREES = torch.arange(1.5, 180, 1.5, dtype=torch.float64)
"""Angles of the curves, without 0 and 180, where some slopes have a pole."""

COLUMNS, DPI = 4, 120
BLUE, ORANGE = COLOURS[0], COLOURS[1]
VALUES, DEEP_VALUES, SLOPES = (-2.3, 1.7), (-7.6, 1.7), (-0.5, 5.5)
"""Limits of the vertical axes: values, values of SphereFace, slopes (some exceed them)."""

CurveLabel = tuple[str, str, float, float]
"""Text, colour, and the coordinates of its centre: degrees and height."""

PSI, ETA, BOTH = r"$\psi$", r"$\eta$", r"$\psi = \eta = \cos\,\theta$"
SLOPE, OTHERS, ONE = r"$\psi'$", r"$\eta'$", r"$\psi' = \eta' = 1$"
VALUE_LABELS: dict[str, tuple[CurveLabel, ...]] = {
    "softmax": ((BOTH, BLUE, 125, 0.4),),
    "sphereface": (
        (r"$\psi,\ \lambda = 0$", BLUE, 50, -3.1),
        (r"$\psi,\ \lambda = 5$", BLUE, 140, -2.6),
        (ETA, ORANGE, 110, 0.4),
    ),
    "sphereface_r_v1": ((PSI, BLUE, 50, -0.2), (ETA, ORANGE, 88, 0.5)),
    "sphereface_r_v2": ((PSI, BLUE, 75, -0.2), (ETA, ORANGE, 115, 0.5)),
    "cosface": ((PSI, BLUE, 65, -0.3), (ETA, ORANGE, 90, 0.5)),
    "arcface": ((PSI, BLUE, 58, -0.3), (ETA, ORANGE, 90, 0.5)),
    "sphereface2": ((PSI, BLUE, 42, -0.5), (ETA, ORANGE, 118, -0.2)),
    "adaface": (
        (r"$\psi$, quality $1$", BLUE, 42, -0.55),
        (r"$\psi$, quality $-1$", BLUE, 118, -1.75),
        (ETA, ORANGE, 95, 0.5),
    ),
}
SLOPE_LABELS: dict[str, tuple[CurveLabel, ...]] = {
    "softmax": ((ONE, BLUE, 90, 1.6),),
    "sphereface": (
        (r"$\psi',\ \lambda = 0$", BLUE, 90, 4.9),
        (r"$\lambda = 5$", BLUE, 18, 4.0),
        (OTHERS, ORANGE, 15, 0.4),
    ),
    "sphereface_r_v1": ((SLOPE, BLUE, 55, 2.5), (OTHERS, ORANGE, 150, 1.5)),
    "sphereface_r_v2": ((SLOPE, BLUE, 40, 1.5), (OTHERS, ORANGE, 150, 2.3)),
    "cosface": ((ONE, BLUE, 90, 1.6),),
    "arcface": ((SLOPE, BLUE, 32, 2.3), (OTHERS, ORANGE, 140, 1.5)),
    "sphereface2": ((r"$\psi' = \eta'$", BLUE, 85, 2.3),),
    "adaface": (
        (r"$\psi'$, quality $-1$", BLUE, 59, 3.2),
        (r"quality $1$", BLUE, 131, 2.5),
        (r"$\eta' = \psi'$ of quality $0$", ORANGE, 90, 1.75),
    ),
}


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """One curve and its derivative with respect to the cosine, at each of ``DEGREES``.

    Attributes:
        target: Whether it belongs to the target class.
        value: Values, fp64.
        slope: Derivatives with respect to the cosine, fp64.
        faint: Whether it is a variant.
    """

    target: bool
    value: torch.Tensor
    slope: torch.Tensor
    faint: bool = False


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/losses.png"))
    out: Path = parser.parse_args().out
    lines = {name: loss_curves(name) for name in LOSSES}
    out.parent.mkdir(parents=True, exist_ok=True)
    save(plot_curves(lines), out, digest(lines))
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def loss_curves(name: str) -> list[LossCurve]:
    """Return the curves of a loss: psi and its variants, then eta."""
    full = build_margin(name, MarginSettings(annealing=Annealing(base=0, minimum=0))).at(1)
    if name == "adaface":
        targets = [_target(full, quality, faint=quality != 0) for quality in (-1, 0, 1)]
    elif name == "sphereface":
        late = build_margin(name).at(10**6)
        targets = [_target(full), _target(late, faint=True)]
    else:
        targets = [_target(full)]
    value, slope = full.eta(_cosines())
    return [*targets, LossCurve(target=False, value=value, slope=slope)]


def digest(lines: dict[str, list[LossCurve]]) -> str:
    """Return a digest of all curves to three decimals; a figure with another digest is out of date."""
    numbers = [
        (name, line.target, _rounded(line.value), _rounded(line.slope)) for name, own in lines.items() for line in own
    ]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def save(figure: Figure, out: Path, description: str) -> None:
    """Write a PNG of few colours, with ``description`` in its metadata."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    note = PngInfo()
    note.add_text("Description", description)
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(out, pnginfo=note, optimize=True)


def plot_curves(lines: dict[str, list[LossCurve]]) -> Figure:
    """Return the figure: for each loss, values above slopes."""
    row_pairs = -(-len(lines) // COLUMNS)
    figure = Figure(figsize=(11, 4.6 * row_pairs), layout="constrained", facecolor="white")
    frames = figure.subplots(2 * row_pairs, COLUMNS, sharex=True, squeeze=False)
    for number, (name, own) in enumerate(lines.items()):
        row_pair, column = divmod(number, COLUMNS)
        upper, lower = frames[2 * row_pair, column], frames[2 * row_pair + 1, column]
        _values(upper, name, own)
        _slopes(lower, name, own)
        if column == 0:
            upper.set_ylabel("value", color=INK, fontsize=11)
            lower.set_ylabel("slope by cos θ", color=INK, fontsize=11)
    return figure


def _values(axes: Axes, name: str, lines: list[LossCurve]) -> None:
    _frame(axes, DEEP_VALUES if name == "sphereface" else VALUES)
    axes.set_title(name, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.plot(DEGREES, _cosines(), color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    _draw(axes, lines, [line.value for line in lines], VALUE_LABELS[name])


def _slopes(axes: Axes, name: str, lines: list[LossCurve]) -> None:
    _frame(axes, SLOPES)
    axes.set_xlabel("θ", color=INK, fontsize=11, labelpad=0)
    _draw(axes, lines, [line.slope for line in lines], SLOPE_LABELS[name])


def _draw(axes: Axes, lines: list[LossCurve], heights: list[torch.Tensor], labels: tuple[CurveLabel, ...]) -> None:
    for line, values in zip(lines, heights, strict=True):
        axes.plot(DEGREES, values, **_line_style(line))
    for text, colour, degree, height in labels:
        axes.text(degree, height, text, ha="center", va="center", color=colour, fontsize=11)


def _frame(axes: Axes, ends: tuple[float, float]) -> None:
    style_axes(axes)
    axes.set_ylim(*ends)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_xlim(0, 180)
    axes.set_xticks([0, 45, 90, 135, 180], ["0°", "45°", "90°", "135°", "180°"])
    axes.tick_params(labelbottom=True)


def _line_style(line: LossCurve) -> dict[str, Any]:
    style = "-" if line.target else (0, (5, 2))
    return {"color": BLUE if line.target else ORANGE, "linestyle": style, "linewidth": 1.0 if line.faint else 2.0}


def _target(pair: Margin, quality: float = 0, *, faint: bool = False) -> LossCurve:
    value, slope = pair.psi(_cosines(), torch.full_like(DEGREES, quality))
    return LossCurve(target=True, value=value, slope=slope, faint=faint)


def _cosines() -> torch.Tensor:
    return torch.deg2rad(DEGREES).cos()


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 3) + 0.0 for value in values.tolist()]  # + 0.0: no negative zeros


if __name__ == "__main__":
    main()
