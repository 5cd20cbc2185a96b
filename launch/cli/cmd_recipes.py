"""``hsadml recipes``."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from hsadml_dist.errors import UsageError
from hsadml_dist.jobs.prepare import find_recipe, shipped_recipes

app = App(name="recipes", help="List, show and copy the recipes that come along.")


@app.command(name="list")
def list_() -> None:
    """List the recipes that come along, with the first line of each."""
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:<12} {first.removeprefix('#').strip()}")


@app.command
def show(name: str, /) -> None:
    """Print a recipe.

    Args:
        name: Its name.
    """
    print(find_recipe(name).read_text(encoding="utf-8"), end="")


@app.command
def copy(name: str, /, *, to: Path | None = None) -> None:
    """Copy a recipe to where you can edit it.

    Args:
        name: Its name.
        to: The file to write; by default NAME.yaml in the current directory. It must not exist.
    """
    target = to or Path(f"{name}.yaml")
    text = find_recipe(name).read_text(encoding="utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as fault:
        raise UsageError(f"--to {target}: exists already; name another file") from fault
    except OSError as fault:
        raise UsageError(f"--to {target}: cannot be written: {fault.strerror}") from fault
    print(f"wrote {target}")
