"""``hsadml profile``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hsadml_dist.errors import ConfigError, ExitCode
from hsadml_dist.slurm.profile_init import ProfileDraft, draft_profile
from hsadml_dist.slurm.profiles import (
    PROFILE_NAME,
    SHIPPED_PROFILES,
    find_profile,
    known_profiles,
    load_profile,
    profile_folder,
    write_profile,
)
from hsadml_dist.slurm.site import survey_site

app = App(name="profile", help="What a cluster asks of every job, written down once; --profile NAME uses it.")
AsJson = Annotated[bool, Parameter(name="--json")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileRow:
    """A line of the list.

    Attributes:
        name: The profile's name.
        path: Its file.
        shipped: Whether it came along.
        about: Its first line.
        problem: What is wrong with it, or None.
    """

    name: str
    path: str
    shipped: bool
    about: str
    problem: str | None = None


@app.command
def init(
    name: str | None = None, /, *, partition: str | None = None, force: bool = False, json_: AsJson = False
) -> None:
    """Ask the cluster about itself and write a profile for it; says what was chosen, and what could not be learnt.

    Args:
        name: Its name; by default the cluster's.
        partition: Where jobs shall go; by default the site's choice, or one with GPUs.
        force: Replace a profile of that name.
        json_: For programs.
    """
    survey = survey_site()
    cluster = survey.site.cluster
    name = name or (cluster if PROFILE_NAME.match(cluster) else "cluster")
    made = draft_profile(survey, partition)
    path = write_profile(name, made.text(), force)
    print(json.dumps(_as_json(name, path, made)) if json_ else _report(name, path, made))


@app.command(name="list")
def list_(*, json_: AsJson = False) -> None:
    """List the profiles, one's own before those that come along, with the first line of each.

    Args:
        json_: For programs.
    """
    rows = [_row(name, path) for name, path in known_profiles().items()]
    if json_:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {'shipped' if row.shipped else 'yours':<7}  {row.problem or row.about}")
    print(f"\nyours are in {profile_folder()}", file=sys.stderr)


@app.command
def show(name: str, /) -> int:
    """Print a profile; a wrong one is printed too, and its faults named.

    Args:
        name: Its name, or the path of a file.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        print(find_profile(name).read_text(encoding="utf-8"), end="", flush=True)
    load_profile(name)
    return ExitCode.SUCCESS


@app.command
def copy(name: str, to: str, /, *, force: bool = False) -> None:
    """Copy a profile into the folder of your own ones, to edit it there.

    Args:
        name: Its name, or the path of a file.
        to: The copy's name.
        force: Replace a profile of that name.
    """
    load_profile(name)
    print(f"wrote {write_profile(to, find_profile(name).read_text(encoding='utf-8'), force)}")


def _row(name: str, path: Path) -> ProfileRow:
    row = ProfileRow(name=name, path=str(path), shipped=path.parent == SHIPPED_PROFILES, about="")
    try:
        about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        load_profile(str(path))
    except (OSError, UnicodeDecodeError):
        return dataclasses.replace(row, problem="cannot be read")
    except ConfigError as fault:
        return dataclasses.replace(row, about=about, problem=f"wrong: {fault.faults[0]}")
    return dataclasses.replace(row, about=about)


def _as_json(name: str, path: Path, made: ProfileDraft) -> dict[str, object]:
    chosen = [dataclasses.asdict(choice) for choice in made.chosen]
    unknown = [{"key": key, "advice": text} for key, text in made.unknown]
    return {"name": name, "path": str(path), "chosen": chosen, "unknown": unknown}


def _report(name: str, path: Path, made: ProfileDraft) -> str:
    keys = [choice.key for choice in made.chosen] + [key for key, _ in made.unknown]
    width = max(map(len, keys))
    values = {choice.key: _shown(choice.value) for choice in made.chosen}
    column = max(map(len, values.values()))
    lines = [f"wrote {path}", "", "chosen:"]
    lines += [_line(f"  {c.key:<{width}}  {values[c.key]:<{column}}  ", c.reason) for c in made.chosen]
    lines += ["", "not learnt:", *(_line(f"  {key:<{width}}  ", text) for key, text in made.unknown)]
    gpus = next((choice.value.rpartition(":")[2] for choice in made.chosen if choice.key == "gres"), "M")
    use = f"hsadml submit RECIPE --nodes N --tasks-per-node {gpus} --profile {name}"
    return "\n".join([*lines, "", f"look it over, then: {use}"])


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line(head: str, text: str) -> str:
    """Return a line; in a terminal the text is folded under itself."""
    if not sys.stdout.isatty():
        return head + text
    return textwrap.fill(
        text,
        max(shutil.get_terminal_size().columns, len(head) + 20),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )
