"""The frame of every page that this package writes: one style, readable without scripts, no link to another file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2

SHARED = ("base.html", "parts.html")
"""Templates beside this file that the others extend or import."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a caption; the first cell of a row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def render_page(package: str, template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a page.

    Args:
        package: The package that holds the template.
        template: Its file name.
        values: What the template names; a name that is missing is an error, all text is escaped.
    """
    texts = {name: _text("hsadml_dist.report", name) for name in SHARED} | {template: _text(package, template)}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
