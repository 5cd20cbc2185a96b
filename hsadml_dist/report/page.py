"""Render the templates of the reports: self-contained HTML pages, Markdown and plain text.

All pages share one style, need no script and link to no other file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hsadml_dist.printable import printable, printable_lines
from hsadml_dist.report.formatting import FILTERS

TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """An image inside a page, as a data URI, and its description in words."""

    uri: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a caption; the first cell of a row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def render_page(package: str, template: str, values: Mapping[str, Any]) -> str:
    """Render an HTML page.

    Args:
        package: The package that holds the template; those in :data:`TEMPLATES` need none of their own.
        template: Its file name.
        values: Values of the template's names; a missing one is an error. All text is escaped: markup for HTML,
            control characters and reversed writing as on a terminal.
    """
    folders = [str(TEMPLATES), str(resources.files(package))]
    return _environment(folders, autoescape=True, finalize=_plain_text).get_template(template).render(values)


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """Render a Markdown document; special characters in values are escaped."""
    return _environment([str(TEMPLATES)], finalize=escape_markdown).get_template(template).render(values)


def render_paragraphs(template: str, values: Mapping[str, Any]) -> list[str]:
    """Render plain text; return its paragraphs, which blank lines separate in the template, each on one line."""
    text = _environment([str(TEMPLATES)]).get_template(template).render(values)
    # No-break spaces stay.
    lines = (re.sub(r"[ \t\n]+", " ", paragraph).strip() for paragraph in text.split("\n\n"))
    return [line for line in lines if line]


def escape_markdown(value: object) -> str:
    """Escape the special characters of Markdown and HTML in a value, and join its lines."""
    return _MARKDOWN.sub(r"\\\1", printable(" ".join(str(value).split())))


def _plain_text(value: object) -> object:
    """Return the value of an expression, which is no markup, without what a browser would not show as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable_lines(value)


def _environment(
    folders: Sequence[str], *, autoescape: bool = False, finalize: Callable[[object], object] | None = None
) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=autoescape,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment
