"""One bar cut into what came out well, in part and badly: told by colour, hatching and words."""

from __future__ import annotations

from collections.abc import Mapping

from hsadml_dist.report.drawing import COLOURS, INK, WIDTH, EmbeddedImage, new_figure, to_svg

# A hatch of dots would be 300 kB of curves; lines are drawn as such.
_LOOKS = ((COLOURS[0], ""), ("#ffffff", "|||"), (COLOURS[1], "////"))


def outcome_bar(counts: Mapping[str, int], unit: str, alt: str) -> EmbeddedImage:
    """Draw at most three numbers as parts of one bar, from good to bad.

    Args:
        counts: Name of a part to its size.
        unit: What is counted, in the plural.
        alt: What the bar is of, in words; the parts are added.
    """
    figure, axes = new_figure(WIDTH, 1.35)
    start = 0
    for (name, count), (colour, hatch) in zip(counts.items(), _LOOKS, strict=False):
        label = f"{name} {count:,}"
        axes.barh(
            0, count, left=start, height=0.5, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.8, label=label
        )
        start += count
    axes.set_yticks([])
    axes.set_xlim(0, max(start, 1))
    axes.set_xlabel(unit)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    return to_svg(figure, f"A bar of {start} {unit} by {alt}: {words}.")
