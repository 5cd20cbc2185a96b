"""``hsadml metrics`` and ``hsadml checkpoint``: print what a run has recorded."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from hsadml_dist.jobs.prepare import require_run_folder
from hsadml_dist.run.history import merged_events, merged_metrics

STEP_COLUMNS = ("step", "attempt", "epoch", "loss", "lr", "grad_norm", "samples", "step_seconds", "data_wait_seconds")
EVENT_COLUMNS = ("time", "attempt", "step", "event", "job", "restart")


def metrics(run: Path, /, *, events: bool = False, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Show a run's steps, one row a step: of a step that was done twice the last attempt's.

    Args:
        run: The run folder.
        events: Show what happened (starts, checkpoints, stops, fall-backs) instead of the steps.
        as_json: Print a JSON list of all fields.
    """
    folder = require_run_folder(run)
    rows = merged_events(folder) if events else merged_metrics(folder)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for line in as_table(rows, EVENT_COLUMNS if events else STEP_COLUMNS):
        print(line)


def as_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the rows as aligned lines under a title; columns that no row has are left out."""
    rows = list(rows)
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)] or list(columns)
    cells = [shown, *([_cell(name, row.get(name)) for name in shown] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(shown))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "time":
        return datetime.datetime.fromtimestamp(value).isoformat(sep=" ", timespec="seconds")
    return f"{value:.5g}" if isinstance(value, float) else str(value)


checkpoint_app = App(name="checkpoint", help="Look into a run's checkpoints.")


@checkpoint_app.command
def digest(run: Path, /, *, step: int | None = None) -> None:
    """Print the SHA-256 of a checkpoint's state: the same for the same state, whatever the attempts and ranks.

    Args:
        run: The run folder.
        step: The checkpoint's step; by default the newest. One that is damaged is refused.
    """
    folder = require_run_folder(run)
    from hsadml_dist.checkpoint.digest import run_digest

    print(run_digest(folder, step))
