"""A verdict as one page that opens anywhere: no script, no link to another file, at most 2 MB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsadml_dist.report.page import render_page
from hsadml_dist.report.sections import provenance, sections
from hsadml_dist.report.sphere import SphereView
from hsadml_dist.report.wording import facts, headline, remarks
from hsadml_dist.run.folder import RunFolder, replace_text


def write_report(
    run: Path, result: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], sphere: SphereView | None
) -> Path:
    """Write ``report.html`` into the run folder; returns its path.

    Args:
        run: The run folder; only its name appears on the page.
        result: ``result.json`` as a dictionary.
        metrics: The merged metrics rows; none: no learning curves.
        sphere: Test slices on the sphere; none: no map.
    """
    path = RunFolder(run).report
    replace_text(path, render(run.resolve().name, result, metrics, sphere))
    return path


def render(
    name: str, result: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], sphere: SphereView | None
) -> str:
    """Return the page's text; see :func:`write_report`."""
    values = {
        "name": name,
        "headline": headline(result),
        "remarks": list(remarks(result)),
        "facts": facts(result),
        "sections": list(sections(result, metrics, sphere)),
        "provenance": provenance(result),
    }
    return render_page("hsadml_dist.report", "verdict.html", values)
