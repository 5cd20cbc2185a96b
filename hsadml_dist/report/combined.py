"""Several runs on one page that opens anywhere: no script, no link to another file, at most 2 MB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsadml_dist.report.combined_sections import provenance, sections
from hsadml_dist.report.combined_wording import facts, headline, remarks
from hsadml_dist.report.page import render_page
from hsadml_dist.run.folder import replace_text

PAGE_NAME = "combined.html"


def write_comparison_page(folder: Path, combined: Mapping[str, Any]) -> Path:
    """Write ``combined.html`` into a folder that exists; returns its path.

    Args:
        folder: Where to.
        combined: ``combined.json`` as a dictionary.
    """
    path = folder / PAGE_NAME
    replace_text(path, render_comparison(combined))
    return path


def render_comparison(combined: Mapping[str, Any]) -> str:
    """Return the page's text; see :func:`write_comparison_page`."""
    values = {
        "title": "Losses and splits compared",
        "headline": headline(combined),
        "remarks": list(remarks(combined)),
        "facts": facts(combined),
        "sections": list(sections(combined)),
        "provenance": provenance(combined),
    }
    return render_page("hsadml_dist.report", "combined.html", values)
