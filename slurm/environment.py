"""The parts of a batch script that come from a profile: lines before srun, options of srun, words of the launcher.

The batch script runs on the node itself, outside any container, because Slurm's commands are usually missing inside.
Only the command that srun starts is wrapped. All returned words are quoted for bash and may hold variables of the job.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.slurm.profiles import VARIABLE, Container, Profile

PYTHON_INSIDE = "python3"
"""Interpreter in a container, unless the profile names one."""
OWN_FOLDER = 'mkdir -p -m 700 -- "$1" && { [ -O "$1" ] || [ "$(stat -Lc %u -- "$1")" = 0 ]; }'
"""Creates a folder; succeeds if it belongs to this user or to root, since anyone may have created it before."""


@dataclass(frozen=True, kw_only=True)
class RankWrapper:
    """Words of bash around the command of the ranks: options of srun, and words before the interpreter."""

    srun_options: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()


def render_prologue(profile: Profile) -> list[str]:
    """Return the lines of bash that prepare the nodes; a failure ends the script with one line and exit code 1."""
    umask = profile.umask
    return [
        # Where SLURM_UMASK is set, for instance by a user's own settings, srun prefers it to the umask of the script.
        *([] if umask is None else [f"umask {umask}; export SLURM_UMASK={umask}"]),
        *_module_lines(profile.modules),
        # eval keeps a comment or an open quote inside its line.
        *(
            f"eval {shlex.quote(line)} || {_fail(f'setup: this line of the profile failed: {line}')}"
            for line in profile.setup
        ),
        *(f"export {name}={bash_word(value)}" for name, value in sorted(profile.env.items())),
        *_scratch_lines(profile.scratch),
    ]


def wrap_ranks(profile: Profile, folders: Sequence[str] = ()) -> RankWrapper:
    """Return the words around the command of the ranks.

    Args:
        profile: The profile, with the ``gres`` of the job, which decides whether GPUs are passed to a container.
        folders: Absolute paths that the ranks need inside a container, mounted at the same place.

    Raises:
        ConfigError: A folder's path cannot be written as a mount.
    """
    if profile.container is None:
        return RankWrapper()
    mounts = tuple(_mounts(profile, profile.container, folders))
    if profile.container.kind == "pyxis":
        return RankWrapper(srun_options=tuple(_pyxis(profile.container, mounts)))
    return RankWrapper(launcher=tuple(_apptainer(profile.container, mounts, profile.gres)))


def rank_interpreter(profile: Profile, own: str) -> str:
    """Return the interpreter of the ranks: the profile's, or else the image's, or ``own`` without a container."""
    return profile.python or (own if profile.container is None else PYTHON_INSIDE)


def bash_word(text: str) -> str:
    """Return ``text`` as one word of bash in which ``$NAME`` and ``${NAME}`` are variables that must be set."""
    if not VARIABLE.search(text):
        return shlex.quote(text)

    def render(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        return f"${{{name}:?is not set here}}" if name else f"\\{match.group()}"

    return '"' + re.sub(rf'{VARIABLE.pattern}|[\\"$`]', render, text) + '"'


def _fail(message: str) -> str:
    return f"{{ echo {shlex.quote('hsadml: ' + message)} >&2; exit 1; }}"


def _module_lines(modules: Sequence[str]) -> Iterator[str]:
    if not modules:
        return
    # A batch script reads no login files, which define `module` on many clusters.
    yield 'type module >/dev/null 2>&1 || [ ! -r "${MODULESHOME:-}/init/bash" ] || . "$MODULESHOME/init/bash"'
    yield f"type module >/dev/null 2>&1 || {_fail('modules: this node has no module command')}"
    yield "module purge"
    for name in modules:
        yield f"module load {name} || {_fail(f'modules: module load {name} failed; `module avail` lists the modules')}"
    hint = "modules: srun is not on PATH after module purge; add Slurm's own module to the profile"
    yield f"type srun >/dev/null 2>&1 || {_fail(hint)}"


def _scratch_lines(scratch: str | None) -> Iterator[str]:
    if scratch is None:
        return
    yield f"scratch={bash_word(scratch)}"
    # On every node, and before TMPDIR is set, because Slurm replaces a TMPDIR that does not exist by /tmp.
    yield (
        'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1'
        f' bash -c {shlex.quote(OWN_FOLDER)} bash "$scratch" || '
        + _fail("scratch: the folder cannot be created on every node, or belongs to another user on one")
    )
    yield 'export TMPDIR="$scratch"'


def _mounts(profile: Profile, container: Container, folders: Sequence[str]) -> Iterator[str]:
    """Yield the mounts as words of bash: the folders of the run, the scratch folder, the mounts of the profile."""
    for folder in dict.fromkeys(folders):
        if set(folder) & set(",:"):
            problem = f"cannot mount {folder!r}; a path with a comma or a colon is not allowed"
            raise ConfigError([Fault(where="job", key="container", problem=problem)])
        # Literally, because a dollar in a resolved path is no variable.
        yield shlex.quote(f"{folder}:{folder}")
    if profile.scratch is not None:
        yield '"$TMPDIR:$TMPDIR"'
    yield from map(bash_word, container.mounts)


def _apptainer(container: Container, mounts: Sequence[str], gres: str | None) -> Iterator[str]:
    yield from ("apptainer", "exec")
    if gres is not None and re.search(r"(?:^|,)gpu\b", gres) and not {"--nv", "--rocm"} & set(container.options):
        yield "--nv"
    for mount in mounts:
        yield from ("--bind", mount)
    yield from map(shlex.quote, container.options)
    yield bash_word(container.image)


def _pyxis(container: Container, mounts: Sequence[str]) -> Iterator[str]:
    yield f"--container-image={bash_word(container.image)}"
    if mounts:
        yield f"--container-mounts={','.join(mounts)}"
    yield from map(shlex.quote, container.options)
