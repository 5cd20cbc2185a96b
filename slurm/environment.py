"""What a profile adds to a batch script, as text: the lines before srun, and what stands between srun and its command.

The batch script runs on the node itself, outside any container: Slurm's commands are there and mostly not inside. Only
what srun starts is wrapped. All words returned are words of bash, quoted: they may hold variables of the job.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.slurm.profiles import VARIABLE, Container, Profile

PYTHON_INSIDE = "python3"
"""The interpreter in a container whose profile names none."""


@dataclass(frozen=True, kw_only=True)
class RankWrapper:
    """What a profile puts around the ranks' command, as words of bash.

    Attributes:
        srun_options: Options of srun.
        launcher: Words before the interpreter.
    """

    srun_options: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()


def render_prologue(profile: Profile) -> list[str]:
    """Return the lines of bash that prepare the nodes; what fails ends the script with one line and exit code 1."""
    return [
        *_umask_lines(profile.umask),
        *_module_lines(profile.modules),
        *_setup_lines(profile.setup),
        *(f"export {name}={bash_word(value)}" for name, value in sorted(profile.env.items())),
        *_scratch_lines(profile.scratch),
    ]


def wrap_ranks(profile: Profile, folders: Sequence[str] = ()) -> RankWrapper:
    """Return what stands around the ranks' command.

    Args:
        profile: The profile, with the ``gres`` that the job really asks for: it decides whether GPUs are passed on.
        folders: Absolute paths that the ranks need inside a container, seen there at the same place.

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
    """Return the interpreter of the ranks; ``own``, this process's, counts where neither profile nor image decides."""
    return profile.python or (own if profile.container is None else PYTHON_INSIDE)


def bash_word(text: str) -> str:
    """Return ``text`` as one word of bash in which ``$NAME`` and ``${NAME}`` stand for variables that must be set."""
    if not VARIABLE.search(text):
        return shlex.quote(text)
    parts: list[str] = []
    end = 0
    for match in VARIABLE.finditer(text):
        name = match.group(1) or match.group(2)
        parts += [_escaped(text[end : match.start()]), f"${{{name}:?is not set here}}"]
        end = match.end()
    return '"' + "".join([*parts, _escaped(text[end:])]) + '"'


def _escaped(text: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", text)


def _fail(message: str) -> str:
    return f"{{ echo {shlex.quote('hsadml: ' + message)} >&2; exit 1; }}"


def _umask_lines(umask: str | None) -> Iterator[str]:
    if umask is not None:
        # Where SLURM_UMASK is set, by a user's own settings say, srun takes it and not the script's umask.
        yield f"umask {umask}; export SLURM_UMASK={umask}"


def _module_lines(modules: Sequence[str]) -> Iterator[str]:
    if not modules:
        return
    # A batch script reads no login files, which define `module` on many clusters.
    yield 'type module >/dev/null 2>&1 || [ ! -r "${MODULESHOME:-}/init/bash" ] || . "$MODULESHOME/init/bash"'
    yield f"type module >/dev/null 2>&1 || {_fail('the profile asks for modules, and this node has no module command')}"
    yield "module purge"
    for name in modules:
        yield f"module load {name} || {_fail(f'module load {name} failed; `module avail` shows what there is')}"
    hint = "srun is not on PATH after module purge; add the module of Slurm itself to the profile's modules"
    yield f"type srun >/dev/null 2>&1 || {_fail(hint)}"


def _setup_lines(setup: Sequence[str]) -> Iterator[str]:
    for line in setup:
        # By eval a comment or an open quote stays inside its line.
        yield f"eval {shlex.quote(line)} || {_fail(f'the setup line of the profile failed: {line}')}"


def _scratch_lines(scratch: str | None) -> Iterator[str]:
    if scratch is None:
        return
    yield f"scratch={bash_word(scratch)}"
    # On every node, and before TMPDIR is set: where TMPDIR does not exist, Slurm puts /tmp in its place.
    yield (
        'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1'
        ' mkdir -p -m 700 -- "$scratch" || ' + _fail("the profile's scratch folder cannot be made on every node")
    )
    yield 'export TMPDIR="$scratch"'


def _mounts(profile: Profile, container: Container, folders: Sequence[str]) -> Iterator[str]:
    """Yield what must be seen inside, as words of bash: the run's folders, the scratch folder, the profile's mounts."""
    for folder in dict.fromkeys(folders):
        if set(folder) & set(",:"):
            problem = f"cannot show {folder!r} inside: a mount's path may hold no comma and no colon"
            raise ConfigError([Fault(where="job", key="container", problem=problem)])
        # Literally: a dollar in a path that was resolved already is no variable.
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
