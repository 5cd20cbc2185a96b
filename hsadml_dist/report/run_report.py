"""A verdict as one page that opens anywhere: no script, no link to another file, at most 2 MB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsadml_dist.report.accuracy_sections import sections
from hsadml_dist.report.claim import claim_tables
from hsadml_dist.report.formatting import facts, headline, remarks
from hsadml_dist.report.model_card import model_card
from hsadml_dist.report.neighbour_examples import NeighbourExample
from hsadml_dist.report.page import render_page
from hsadml_dist.report.run_facts import provenance_table, software
from hsadml_dist.report.sphere import SphereProjection
from hsadml_dist.run.folder import RunFolder, replace_text


def write_run_report(
    run: Path,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    sphere: SphereProjection | None,
    cases: Sequence[NeighbourExample] = (),
) -> Path:
    """Write ``report.html`` and ``MODEL_CARD.md`` into the run folder; returns the page's path.

    Args:
        run: The run folder; only its name appears on the page.
        result: ``result.json`` as a dictionary.
        metrics: The merged metrics rows; none: no learning curves.
        sphere: Test slices on the sphere; none: no map.
        cases: Test slices with their nearest training slices; none: no pictures.
    """
    folder, name, versions = RunFolder(run), run.resolve().name, software()
    replace_text(folder.model_card, model_card(name, result, versions))
    replace_text(folder.report, render_run_report(name, result, metrics, sphere, cases, versions))
    return folder.report


def render_run_report(
    name: str,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    sphere: SphereProjection | None,
    cases: Sequence[NeighbourExample] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """Return the page's text; ``versions``: the software's; see :func:`write_run_report` for the others."""
    values = {
        "name": name,
        "headline": headline(result),
        "remarks": list(remarks(result)),
        "facts": facts(result),
        "sections": list(sections(result, metrics, sphere, cases)),
        "claim": claim_tables(result, cases, versions or {}),
        "provenance": provenance_table(result, versions or {}),
    }
    return render_page("hsadml_dist.report", "verdict.html", values)
