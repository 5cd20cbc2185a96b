"""``hsadml profile``: save the options that every job on a cluster needs."""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from cyclopts import App

from hsadml_dist.errors import ConfigError, ExitCode
from hsadml_dist.launch.cli.terminal import AsJson, echo, echo_file, echo_json, terminal_width
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

app = App(name="profile", help="Save the options that every job on your cluster needs; --profile NAME uses them.")


@app.command
def init(
    name: str | None = None, /, *, partition: str | None = None, force: bool = False, as_json: AsJson = False
) -> None:
    """Query the cluster and write a profile for it; print what was chosen and what you need to find out.

    Args:
        name: Name of the profile; by default the cluster's.
        partition: Partition for the jobs; by default the site's, or one with GPUs.
        force: Replace an existing profile.
        as_json: Print JSON instead of text.
    """
    survey = survey_site()
    cluster = survey.site.cluster
    name = name or (cluster if PROFILE_NAME.match(cluster) else "cluster")
    draft = draft_profile(survey, partition)
    path = write_profile(name, draft.text(), force)
    if as_json:
        echo_json(_as_json(name, path, draft))
    else:
        echo(*_format_draft(name, path, draft))


@app.command(name="list")
def list_(*, as_json: AsJson = False) -> None:
    """List your profiles and the shipped ones, each with its first line.

    Args:
        as_json: Print a JSON list instead of lines.
    """
    rows = [_row(name, path) for name, path in known_profiles().items()]
    if as_json:
        echo_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        owner = "shipped" if row["shipped"] else "yours"
        echo(f"{row['name']:<{width}}  {owner:<7}  {row['problem'] or row['about']}")
    echo("", f"your profiles are in {profile_folder()}", error=True)


@app.command
def show(name: str, /) -> int:
    """Print a profile. An invalid profile is printed too, followed by its errors.

    Args:
        name: Name of the profile, or path of a file.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        echo_file(find_profile(name).read_text(encoding="utf-8"))
    load_profile(name)
    return ExitCode.SUCCESS


@app.command
def copy(name: str, to: str, /, *, force: bool = False) -> None:
    """Copy a profile to the folder of your profiles, to edit it there.

    Args:
        name: Name of the profile, or path of a file.
        to: Name of the copy.
        force: Replace an existing profile.
    """
    load_profile(name)
    echo(f"wrote {write_profile(to, find_profile(name).read_text(encoding='utf-8'), force)}")


def _row(name: str, path: Path) -> dict[str, Any]:
    """Return a row of the list: the first line of a profile, and why it is invalid or None."""
    about, problem = "", None
    try:
        about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        load_profile(str(path))
    except (OSError, UnicodeDecodeError):
        problem = "cannot be read"
    except ConfigError as fault:
        problem = f"invalid: {fault.faults[0]}"
    shipped = path.parent == SHIPPED_PROFILES
    return {"name": name, "path": str(path), "shipped": shipped, "about": about, "problem": problem}


def _as_json(name: str, path: Path, draft: ProfileDraft) -> dict[str, object]:
    chosen = [dataclasses.asdict(choice) for choice in draft.chosen]
    unknown = [{"key": key, "advice": text} for key, text in draft.unknown]
    return {"name": name, "path": str(path), "chosen": chosen, "unknown": unknown}


def _format_draft(name: str, path: Path, draft: ProfileDraft) -> list[str]:
    keys = [choice.key for choice in draft.chosen] + [key for key, _ in draft.unknown]
    width = max(map(len, keys))
    values = {choice.key: _format_value(choice.value) for choice in draft.chosen}
    column = max(map(len, values.values()))
    lines = [f"wrote {path}", "", "chosen:"]
    for choice in draft.chosen:
        lines += _wrap_line(f"  {choice.key:<{width}}  {values[choice.key]:<{column}}  ", choice.reason)
    lines += ["", "to find out:"]
    for key, text in draft.unknown:
        lines += _wrap_line(f"  {key:<{width}}  ", text)
    gpus = next((choice.value.rpartition(":")[2] for choice in draft.chosen if choice.key == "gres"), "M")
    use = f"hsadml submit RECIPE --nodes N --tasks-per-node {gpus} --profile {name}"
    return [*lines, "", f"check it, then: {use}"]


def _format_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrap_line(head: str, text: str) -> list[str]:
    """Return one line; on a terminal the text is wrapped with a hanging indent."""
    width = terminal_width()
    if width is None:
        return [head + text]
    return textwrap.wrap(
        text,
        max(width, len(head) + 20),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )
