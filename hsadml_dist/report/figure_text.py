"""Names from data in figures: as text, never as formulas, and as numbers where the font lacks their characters.

Figures are drawn with one font on every machine, so that the same figure has the same bytes; it has no Chinese, for
instance. The page around a figure shows every name.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from matplotlib import font_manager

from hsadml_dist.printable import printable

MAX_CHARACTERS = 40
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def figure_text(text: str) -> str:
    """Return a text as matplotlib should get it: on one line, at most 40 characters, without mathematical formulas.

    Characters that the font lacks become question marks; use :func:`class_labels` for names that must differ.
    """
    line = printable(text)
    if len(line) > MAX_CHARACTERS:
        line = line[: MAX_CHARACTERS - 1] + ELLIPSIS
    known = "".join(character if ord(character) in _font_characters() else "?" for character in line)
    # Some versions of matplotlib leave a name that begins with an underscore out of a legend.
    return " " * known.startswith("_") + known.replace("$", r"\$")


def class_labels(names: Sequence[str]) -> list[str]:
    """Return the names of all classes for a figure; a name that the font cannot show becomes ``class N``, from 1 on."""
    return [figure_text(name) if can_draw(name) else f"class {number}" for number, name in enumerate(names, start=1)]


def can_draw(name: str) -> bool:
    """Return whether the font of the figures has all characters of a name."""
    return _font_characters().issuperset(map(ord, printable(name)))


@functools.cache
def _font_characters() -> frozenset[int]:
    path = font_manager.findfont(font_manager.FontProperties())
    return frozenset(font_manager.get_font(path).get_charmap())
