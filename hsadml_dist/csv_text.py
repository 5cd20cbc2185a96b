"""CSV that a spreadsheet opens as text and numbers, never as formulas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from hsadml_dist.printable import printable_lines

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Excel also takes the full-width forms, and cells end at semicolons where the comma is the decimal sign.
_FORMULA = re.compile(r"(^|[;\t\n])(?=[=+\-@\t\n\uff1d\uff0b\uff0d\uff20])")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as CSV with commas and line ends of one character.

    A cell that a spreadsheet would calculate, such as the file name ``=1+1.png``, gets a leading apostrophe; numbers
    stay as they are. Control characters, and what cannot be written as UTF-8, are escaped as on a terminal.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def _cell(text: str) -> str:
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'", printable_lines(text))
