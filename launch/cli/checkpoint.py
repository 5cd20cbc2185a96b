"""``hsadml checkpoint``."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from hsadml_dist.launch.prepare import require_run_folder

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
