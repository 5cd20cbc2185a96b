"""Profiles: what a cluster asks of every job, written down once.

A profile is a YAML file: a shipped one, or one's own in the user's configuration folder, which comes first. Only paths
that say so are expanded: ``$NAME`` and ``${NAME}`` stand for variables of the batch script, on the first node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hsadml_dist.config.yaml_loader import load_settings
from hsadml_dist.errors import ConfigError, Fault, UsageError, did_you_mean, os_error_reason
from hsadml_dist.run.folder import replace_text
from hsadml_dist.slurm.job_records import RequeueMode
from hsadml_dist.slurm.sbatch import MAX_SIGNAL_LEAD, parse_time_limit

SHIPPED_PROFILES = Path(__file__).with_name("profiles")
PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
TIME_FORMS = "MINUTES, M:S, H:M:S, D-H, D-H:M, D-H:M:S, UNLIMITED"

Problems = Iterator[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Container:
    """What srun's command runs inside; the batch script itself runs on the node.

    Attributes:
        kind: ``apptainer``: the command is ``apptainer exec``; ``pyxis``: srun itself has options for containers.
        image: A file, or an address that the kind understands. Variables are expanded.
        mounts: Folders to see inside, ``SOURCE:TARGET`` or ``SOURCE:TARGET:ro``. Variables are expanded.
        options: Further options, each in one word: of ``apptainer exec``, or of srun.
    """

    kind: Literal["apptainer", "pyxis"]
    image: str
    mounts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What every job on a cluster needs; all of it may be left out.

    Attributes:
        partition: Slurm's partition. This and the next three: the site's default if left out.
        account: The account that pays.
        qos: The quality of service.
        constraint: Features that the nodes must have.
        gres: Resources of each node, for instance ``gpu:4``.
        time: Time limit in one of Slurm's forms.
        mem: Memory of each node, for instance ``64G``; ``0`` means all of it.
        cpus_per_task: CPUs of each rank.
        requeue: How a job comes back once it was stopped: ``chain``, ``self`` or ``none``.
        signal_lead: Seconds before its end at which a job is told.
        sbatch_on_nodes: Whether jobs may be submitted from nodes, as ``chain`` does; None: not known.
        modules: Modules to load, after a ``module purge``.
        setup: Shell commands to run before srun, each a whole one.
        python: Interpreter of the ranks: an absolute path, or a name that is on the nodes' PATH.
        container: What the ranks run inside; None: nothing.
        scratch: Folder on each node's own disk, made if need be: the ranks' TMPDIR. Variables are expanded.
        env: Environment variables of the ranks. Variables in the values are expanded.
        umask: Octal digits: what the files that the ranks write may not be.
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
    """Return the folder of the user's own profiles, whether it exists or not."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "hsadml" / "profiles"


def known_profiles() -> dict[str, Path]:
    """Return the profiles by name, one's own before the shipped ones, of which they hide those of the same name."""
    own = {path.stem: path for path in sorted(profile_folder().glob("*.yaml"))}
    return own | {path.stem: path for path in sorted(SHIPPED_PROFILES.glob("*.yaml")) if path.stem not in own}


def find_profile(name_or_path: str) -> Path:
    """Return the file of a profile: a known one by its name, any other by its path.

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
        names = ", ".join(known)
        problem = f"no profile {name_or_path!r}; there are: {names}{did_you_mean(name_or_path, known)}"
        problem += "; `hsadml profile init` writes one for this cluster"
    raise ConfigError([Fault(where="command line", key="profile", problem=problem)])


def load_profile(name_or_path: str) -> Profile:
    """Return a profile.

    Raises:
        ConfigError: There is no such profile, or it is wrong; every fault is named with its line.
    """
    return load_settings(find_profile(name_or_path), Profile, "profile", profile_problems)


def write_profile(name: str, text: str, force: bool = False) -> Path:
    """Write one of the user's own profiles, atomically, and return its file.

    Args:
        name: Its name.
        text: The YAML.
        force: Whether to replace one of the same name.

    Raises:
        UsageError: The name is none, the profile exists and ``force`` is not set, or it cannot be written.
    """
    if not PROFILE_NAME.match(name):
        raise UsageError(f"profile {name!r}: a name has letters, digits, _, - and dots, and starts with no sign")
    path = profile_folder() / f"{name}.yaml"
    if path.exists() and not force:
        raise UsageError(f"profile {name}: {path} exists already; give another name, or --force to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    except OSError as fault:
        raise UsageError(f"profile {name}: {path} cannot be written: {os_error_reason(fault)}") from fault
    return path


def profile_problems(profile: Profile) -> Problems:
    """Yield (key, problem) for everything that is wrong with a profile beyond the types of its values."""
    yield from _word_problems(profile)
    yield from _time_problems(profile)
    yield from _number_problems(profile)
    yield from _requeue_problems(profile)
    yield from _shell_problems(profile)
    yield from _path_problems(profile)
    yield from _env_problems(profile)
    if profile.container is not None:
        yield from _container_problems(profile.container)


def _word_problems(profile: Profile) -> Problems:
    for key in ("partition", "account", "qos", "constraint", "gres", "mem"):
        yield from _unwritable(key, getattr(profile, key), '"\\')
    if profile.mem is not None and not re.fullmatch(r"[0-9]+[KMGT]?B?", profile.mem, flags=re.ASCII | re.IGNORECASE):
        yield "mem", f"is {profile.mem!r}; must be a number with K, M, G or T, such as '64G', or '0' for all"
    for option in profile.options:
        yield from _option_problems("options", option, '"\\')


def _time_problems(profile: Profile) -> Problems:
    if profile.time is None:
        return
    try:
        seconds = parse_time_limit(profile.time)
    except ValueError:
        yield "time", f"is {profile.time!r}; allowed forms: {TIME_FORMS}"
        return
    lead = profile.signal_lead
    if seconds is not None and seconds <= (lead or 0):
        yield "time", f"is {profile.time!r} ({seconds} s); must be longer than signal_lead ({lead or 0} s)"


def _number_problems(profile: Profile) -> Problems:
    if profile.cpus_per_task is not None and profile.cpus_per_task < 1:
        yield "cpus_per_task", f"is {profile.cpus_per_task}; must be at least 1"
    if profile.signal_lead is not None and not 1 <= profile.signal_lead <= MAX_SIGNAL_LEAD:
        yield "signal_lead", f"is {profile.signal_lead}; allowed: 1 to {MAX_SIGNAL_LEAD} seconds"
    if profile.umask is not None and not re.fullmatch(r"[0-7]{3,4}", profile.umask, flags=re.ASCII):
        yield "umask", f'is {profile.umask!r}; must be three or four octal digits in quotes, such as "0027"'


def _requeue_problems(profile: Profile) -> Problems:
    if profile.requeue == "chain" and profile.sbatch_on_nodes is False:
        yield "requeue", "is 'chain', which submits from a node, and sbatch_on_nodes is false; allowed: self, none"


def _shell_problems(profile: Profile) -> Problems:
    for name in profile.modules:
        if not re.fullmatch(r"[\w.+][\w./+@%:=~-]*", name, flags=re.ASCII):
            yield "modules", f"has {name!r}; must be a module's name, such as 'cuda/12.4', one to an item"
    for number, line in enumerate(profile.setup, start=1):
        yield from _unwritable("setup", line, "", f"item {number} ")


def _path_problems(profile: Profile) -> Problems:
    python, scratch = profile.python, profile.scratch
    yield from _unwritable("python", python, "")
    if python and (set(python) & set("$~") or ("/" in python and not python.startswith("/"))):
        yield "python", f"is {python!r}; must be an absolute path, written out, or a name on the nodes' PATH"
    yield from _unwritable("scratch", scratch, "")
    if scratch and not is_absolute(scratch):
        yield "scratch", f"is {scratch!r}; must be an absolute path, such as /tmp/$USER/$SLURM_JOB_ID"


def _env_problems(profile: Profile) -> Problems:
    for name, value in profile.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield "env", f"has the name {name!r}; allowed: letters, digits and _, not starting with a digit"
        if value:
            yield from _unwritable("env", value, "", f"{name} ")


def _container_problems(container: Container) -> Problems:
    yield from _unwritable("container.image", container.image, "")
    if container.kind == "apptainer" and container.image.startswith("~"):
        yield "container.image", f"is {container.image!r}; ~ is not expanded, write $HOME"
    for mount in container.mounts:
        yield from _mount_problems(mount)
    for option in container.options:
        yield from _option_problems("container.options", option, "")


def _mount_problems(mount: str) -> Problems:
    yield from _unwritable("container.mounts", mount, ",")
    source, _, rest = mount.partition(":")
    target, _, mode = rest.partition(":")
    if not (is_absolute(source) and is_absolute(target) and (mode == "ro" or not mode) and mount[-1:] != ":"):
        problem = f"has {mount!r}; must be SOURCE:TARGET or SOURCE:TARGET:ro, both absolute paths"
        yield "container.mounts", problem


def _option_problems(key: str, option: str, forbidden: str) -> Problems:
    yield from _unwritable(key, option, forbidden)
    if not option.startswith("-"):
        yield key, f"has {option!r}; each item is one option in one word, such as '--name=value'"


def _unwritable(key: str, value: str | None, forbidden: str, what: str = "") -> Problems:
    """Yield a problem if ``value`` is empty or holds what cannot stand in a line of a batch script."""
    if value is None:
        return
    if not value.strip():
        yield key, f"{what}is empty; give a value or leave it out"
    found = sorted({letter for letter in value if letter in forbidden or not letter.isprintable()})
    if found:
        yield key, f"{what}is {value!r}; {' '.join(map(repr, found))} cannot stand there"


def is_absolute(path: str) -> bool:
    """Whether a path is absolute once its variables are expanded, as far as that can be told."""
    return path.startswith("/") or VARIABLE.match(path) is not None
