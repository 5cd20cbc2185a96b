"""Profiles: the settings that a cluster needs for every job, in a YAML file.

A profile is one of the shipped files or a user's own in the configuration folder, which takes precedence. ``$NAME`` and
``${NAME}`` are variables of the batch script on the first node; they are expanded only in the settings marked so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hsadml_dist.atomic import write_text
from hsadml_dist.config.yaml_loader import load_settings
from hsadml_dist.errors import ConfigError, Fault, UsageError, did_you_mean, os_error_reason
from hsadml_dist.slurm.job_records import RequeueMode
from hsadml_dist.slurm.sbatch import (
    MAX_SIGNAL_LEAD,
    TEXT_OPTIONS,
    Problems,
    env_problems,
    text_problems,
    time_limit_problems,
)

SHIPPED_PROFILES = Path(__file__).with_name("profiles")
PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


@dataclass(frozen=True, kw_only=True)
class Container:
    """The container of the ranks; the batch script itself runs on the node.

    Attributes:
        kind: ``apptainer``: the ranks run under ``apptainer exec``; ``pyxis``: srun has options for containers.
        image: A file, or an address that the kind understands. Variables are expanded.
        mounts: Folders inside the container, ``SOURCE:TARGET`` or ``SOURCE:TARGET:ro``. Variables are expanded.
        options: Further options of ``apptainer exec`` or of srun, each in one word.
    """

    kind: Literal["apptainer", "pyxis"]
    image: str
    mounts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Settings of every job on a cluster; all are optional.

    Attributes:
        partition: Partition. Default of this and the next three: that of the site.
        constraint: Features that the nodes must have.
        gres: Generic resources per node, for instance ``gpu:4``.
        time: Time limit in one of Slurm's forms.
        mem: Memory per node, for instance ``64G``; ``0`` means all of it.
        requeue: How a stopped job is resumed: ``chain``, ``self`` or ``none``.
        signal_lead: How long before its end a job is signalled, in seconds.
        sbatch_on_nodes: True if jobs may be submitted from nodes, as ``chain`` does; None means unknown.
        modules: Modules to load after a ``module purge``.
        setup: Shell commands to run before srun, each complete in itself.
        python: Interpreter of the ranks: an absolute path, or a name on the PATH of the nodes.
        scratch: Folder on each node's own disk, created if needed: TMPDIR of the ranks. Variables are expanded.
        env: Environment variables of the ranks. Variables in the values are expanded.
        umask: File mode creation mask of the ranks, in octal digits.
        options: Further options of sbatch, each in one word.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    time: str | None = None
    mem: str | None = None
    cpus_per_task: int | None = None
    requeue: RequeueMode | None = None
    signal_lead: int | None = None
    sbatch_on_nodes: bool | None = None
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    python: str | None = None
    container: Container | None = None
    scratch: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    umask: str | None = None
    options: tuple[str, ...] = ()


def profile_folder() -> Path:
    """Return the folder of the user's own profiles, which may not exist."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "hsadml" / "profiles"


def known_profiles() -> dict[str, Path]:
    """Return all profiles by name; a user's own profile hides a shipped one of the same name."""
    own = {path.stem: path for path in sorted(profile_folder().glob("*.yaml"))}
    return own | {path.stem: path for path in sorted(SHIPPED_PROFILES.glob("*.yaml")) if path.stem not in own}


def find_profile(name_or_path: str) -> Path:
    """Return the file of a profile, which is given by its name or its path.

    Raises:
        ConfigError: There is no such profile.
    """
    known = known_profiles()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if "/" in name_or_path or path.suffix in (".yaml", ".yml"):
        problem = f"{name_or_path!r}: no such file"
    else:
        allowed = f"allowed: {', '.join(known)}{did_you_mean(name_or_path, known)}"
        problem = f"no profile {name_or_path!r}; {allowed}; `hsadml profile init` writes one for this cluster"
    raise ConfigError([Fault(where="command line", key="profile", problem=problem)])


def load_profile(name_or_path: str) -> Profile:
    """Load a profile.

    Raises:
        ConfigError: There is no such profile, or it is invalid; every fault is named with its line.
    """
    return load_settings(find_profile(name_or_path), Profile, "profile", profile_problems)


def write_profile(name: str, text: str, force: bool = False) -> Path:
    """Write YAML text as a profile to the user's configuration folder and return its file.

    Raises:
        UsageError: The name is invalid, the profile exists and ``force`` is not set, or it cannot be written.
    """
    if not PROFILE_NAME.match(name):
        rule = "letters, digits, _, - and dots, starting with a letter or digit"
        raise UsageError(f"profile {name!r}: not a valid name; allowed: {rule}")
    path = profile_folder() / f"{name}.yaml"
    if path.exists() and not force:
        raise UsageError(f"profile {name}: {path} exists; choose another name, or --force to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as fault:
        raise UsageError(f"profile {name}: {path} cannot be written: {os_error_reason(fault)}") from fault
    return path


def profile_problems(profile: Profile) -> Problems:
    """Yield (key, problem) for everything that is wrong with a profile apart from the types of its values."""
    yield from _word_problems(profile)
    yield from time_limit_problems("time", profile.time, profile.signal_lead or 0, "signal_lead")
    yield from _number_problems(profile)
    if profile.requeue == "chain" and profile.sbatch_on_nodes is False:
        yield "requeue", "is 'chain', which submits from a node, and sbatch_on_nodes is false; allowed: self, none"
    yield from _shell_problems(profile)
    yield from _path_problems(profile)
    yield from env_problems("env", profile.env)
    if profile.container is not None:
        yield from _container_problems(profile.container)


def _word_problems(profile: Profile) -> Problems:
    for key in TEXT_OPTIONS:
        yield from text_problems(key, getattr(profile, key), '"\\')
    if profile.mem is not None and not re.fullmatch(r"[0-9]+[KMGT]?B?", profile.mem, flags=re.ASCII | re.IGNORECASE):
        yield "mem", f"is {profile.mem!r}; must be a number with K, M, G or T, such as '64G', or '0' for all"
    for option in profile.options:
        yield from _option_problems("options", option, '"\\')


def _number_problems(profile: Profile) -> Problems:
    if profile.cpus_per_task is not None and profile.cpus_per_task < 1:
        yield "cpus_per_task", f"is {profile.cpus_per_task}; must be at least 1"
    if profile.signal_lead is not None and not 1 <= profile.signal_lead <= MAX_SIGNAL_LEAD:
        yield "signal_lead", f"is {profile.signal_lead}; allowed: 1 to {MAX_SIGNAL_LEAD} seconds"
    if profile.umask is not None and not re.fullmatch(r"[0-7]{3,4}", profile.umask, flags=re.ASCII):
        yield "umask", f'is {profile.umask!r}; must be three or four octal digits in quotes, such as "0027"'


def _shell_problems(profile: Profile) -> Problems:
    for name in profile.modules:
        if not re.fullmatch(r"[\w.+][\w./+@%:=~-]*", name, flags=re.ASCII):
            yield "modules", f"has {name!r}; each item must be the name of a module, such as 'cuda/12.4'"
    for number, line in enumerate(profile.setup, start=1):
        yield from text_problems("setup", line, prefix=f"item {number} ")


def _path_problems(profile: Profile) -> Problems:
    python, scratch = profile.python, profile.scratch
    yield from text_problems("python", python)
    if python and (set(python) & set("$~") or ("/" in python and not python.startswith("/"))):
        yield "python", f"is {python!r}; must be an absolute path without variables, or a name on the PATH of the nodes"
    yield from text_problems("scratch", scratch)
    if scratch and not is_absolute(scratch):
        yield "scratch", f"is {scratch!r}; must be an absolute path, such as /tmp/$USER/$SLURM_JOB_ID"


def _container_problems(container: Container) -> Problems:
    yield from text_problems("container.image", container.image)
    if container.kind == "apptainer" and container.image.startswith("~"):
        yield "container.image", f"is {container.image!r}; ~ is not expanded, write $HOME"
    for mount in container.mounts:
        yield from _mount_problems(mount)
    for option in container.options:
        yield from _option_problems("container.options", option, "")


def _mount_problems(mount: str) -> Problems:
    yield from text_problems("container.mounts", mount, ",")
    source, _, rest = mount.partition(":")
    target, _, mode = rest.partition(":")
    if not (is_absolute(source) and is_absolute(target) and (mode == "ro" or not mode) and mount[-1:] != ":"):
        problem = f"has {mount!r}; must be SOURCE:TARGET or SOURCE:TARGET:ro, both absolute paths"
        yield "container.mounts", problem


def _option_problems(key: str, option: str, forbidden: str) -> Problems:
    yield from text_problems(key, option, forbidden)
    if not option.startswith("-"):
        yield key, f"has {option!r}; each item must be one option in one word, such as '--name=value'"


def is_absolute(path: str) -> bool:
    """Return whether a path is absolute, or starts with a variable and may be."""
    return path.startswith("/") or VARIABLE.match(path) is not None
