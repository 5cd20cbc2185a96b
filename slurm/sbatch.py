"""The batch script of a job, as text; nothing here talks to Slurm or writes a file.

Why the script is as it is (each point was observed on a real cluster, Slurm 22.05):

* One task per rank under srun, no torchrun, because torchrun forwards few signals and kills after 30 s.
* srun runs in the background and the shell traps TERM, or the shell would die before its ranks.
* ``--kill-on-bad-exit`` sends CONT and TERM first and KILL only after KillWait: a rank that exits with 85 a moment
  before its peers does not cost them their exit code.
* ``scontrol requeue`` also requeues a job that its user has cancelled. The script therefore asks first who ended it.
* After a preemption without grace time Slurm has requeued by itself; a script that lingers holds the nodes for
  KillWait.
* A requeued job waits for its credentials to expire, 121 s by default. The links of a chain are separate jobs, each
  submitted by the one before it at its start, and do not wait.
* The successor of a cancelled link starts at once: each link checks first how the one before it ended.
* ``RequeueExit`` requeues even a job submitted with ``--no-requeue``: such a job exits at once.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hsadml_dist.errors import ConfigError, Fault
from hsadml_dist.slurm.job_records import REQUEUE_MODES, RequeueMode

SCRIPT_TEMPLATE = Path(__file__).with_name("train.sbatch")
SCRIPT_NAME = "job.sbatch"
COMMON_PART_MARKER = "# From here on the script is the same for every job.\n"
"""The line of ``train.sbatch`` after which the script is the same for every job."""
RANKS_MARKER, END_MARKER = "# ---- One task per rank.", "# ---- How did it end?"
"""First lines of the part that starts the ranks, and of the part after it."""
MAX_SIGNAL_LEAD = 65535
"""Slurm keeps the lead of --signal in 16 bits."""
TEXT_OPTIONS = ("partition", "account", "qos", "constraint", "gres", "mem")
"""Options of sbatch with a text that only the site can check."""
TIME_FORMS = "MINUTES, M:S, H:M:S, D-H, D-H:M, D-H:M:S, UNLIMITED"

Problems = Iterator[tuple[str, str]]
"""Pairs of a key and what is wrong with its value."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A job to ask Slurm for.

    Attributes:
        run_dir: Run folder, absolute; it holds ``config.yaml`` and receives the output of the job.
        tasks_per_node: Ranks per node.
        python: Interpreter of the ranks.
        working_dir: Folder that the job starts in, absolute.
        partition: Partition. None leaves it to the site; so it does for the next six.
        constraint: Features that the nodes must have.
        gres: Generic resources per node, for instance ``gpu:4``.
        time_limit: Time limit in one of Slurm's forms, for instance ``2-12:00:00``.
        mem: Memory per node, for instance ``64G``.
        requeue: ``chain``: a successor waits from the start on and resumes after a stop; ``self``: a stopped job
            requeues itself; ``none``: it ends.
        signal_lead_seconds: How long before its end the job is signalled.
        extra_env: Environment variables for the ranks.
        elements: Run folders of the elements of an array, absolute; empty for a single job. ``run_dir`` is then the
            folder of the script and the output.
        options: Further options of sbatch, each in one word, for instance ``--reservation=mri``.
        prologue: Lines of shell that run before the ranks start, for instance ``module load cuda``.
        srun_options: Further options of srun, as quoted words of bash: they may hold variables.
        launcher: Words of bash before the interpreter, for instance those of a container.
        rank_module: Python module that each rank runs, with the run folder as its argument.
    """

    run_dir: Path
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    python: str
    working_dir: Path
    job_name: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    time_limit: str | None = None
    mem: str | None = None
    requeue: RequeueMode = "self"
    signal_lead_seconds: int = 30
    extra_env: Mapping[str, str] = field(default_factory=dict)
    elements: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    srun_options: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    rank_module: str = "hsadml_dist.launch.rank"

    @property
    def script(self) -> Path:
        """Path of the batch script."""
        return self.run_dir / SCRIPT_NAME

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.tasks_per_node


def render(request: JobRequest) -> str:
    """Return the batch script of ``request``.

    Raises:
        ConfigError: The request cannot be written as a script that Slurm would accept; every fault is named.
    """
    validate(request)
    directives = [f"#SBATCH {option}" for option in _options(request)]
    return "\n".join(["#!/bin/bash", *directives, "", *_settings(request), "", common_part()])


def common_part() -> str:
    """Return the part of the script that is the same for every job."""
    _, line, tail = SCRIPT_TEMPLATE.read_text(encoding="utf-8").partition(COMMON_PART_MARKER)
    return line + tail


def render_setup_and_teardown(request: JobRequest) -> tuple[str, str]:
    """Return the parts of the script before and after the ranks, for a backend that starts the ranks itself.

    The second part expects the exit code of the ranks in ``$code``.

    Raises:
        ConfigError: As :func:`render`.
    """
    validate(request)
    before, _, ranks = common_part().partition(RANKS_MARKER)
    _, line, after = ranks.partition(END_MARKER)
    return "\n".join([*_settings(request), "", before]), line + after


def validate(request: JobRequest) -> None:
    """Check a request before anything is queued.

    Raises:
        ConfigError: The request is invalid; every fault is named.
    """
    problems = [*_number_problems(request), *_text_problems(request), *env_problems("extra_env", request.extra_env)]
    if problems:
        raise ConfigError(Fault(where="job", key=key, problem=problem) for key, problem in problems)


def parse_time_limit(time_limit: str) -> int | None:
    """Return a time limit in seconds: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None means UNLIMITED.

    Raises:
        ValueError: The text has none of these forms.
    """
    if time_limit.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time_limit, flags=re.ASCII)
    if match is None:
        raise ValueError(time_limit)
    days, first, second, third = match.groups()
    parts = [int(first), int(second or 0), int(third or 0)]
    if days is None:
        # Without days one or two numbers start at minutes, three at hours.
        parts = parts if third is not None else [0, *parts[:2]]
    hours, minutes, seconds = parts
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def time_limit_problems(key: str, time_limit: str | None, lead: int, lead_key: str) -> Problems:
    """Yield what is wrong with a time limit, also that it is not longer than the ``lead`` of the signal in seconds."""
    if time_limit is None:
        return
    try:
        seconds = parse_time_limit(time_limit)
    except ValueError:
        yield key, f"is {time_limit!r}; allowed forms: {TIME_FORMS}"
        return
    if seconds is not None and seconds <= lead:
        yield key, f"is {time_limit!r} ({seconds} s); must be longer than {lead_key} ({lead} s)"


def env_problems(key: str, env: Mapping[str, str]) -> Problems:
    """Yield what is wrong with environment variables for a batch script."""
    for name, value in env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield key, f"has the name {name!r}; allowed: letters, digits and _, not starting with a digit"
        if value:
            yield from text_problems(key, value, prefix=f"{name} ")


def text_problems(key: str, value: str | None, forbidden: str = "", prefix: str = "") -> Problems:
    """Yield what is wrong with a text for a line of a batch script: empty, or with characters that cannot be written.

    Args:
        key: Key of the setting.
        value: The text; None means that it is not given.
        forbidden: Characters that must not occur, in addition to those that cannot be printed.
        prefix: Text before the problem, which names the item of a list.
    """
    if value is None:
        return
    if not value.strip():
        yield key, f"{prefix}is empty; give a value or leave it out"
    found = sorted({letter for letter in value if letter in forbidden or not letter.isprintable()})
    if found:
        yield key, f"{prefix}is {value!r}; must not contain {' '.join(map(repr, found))}"


def _options(request: JobRequest) -> Iterator[str]:
    options = {
        "job-name": request.job_name,
        "nodes": request.nodes,
        "ntasks-per-node": request.tasks_per_node,
        "cpus-per-task": request.cpus_per_task,
        "array": f"0-{len(request.elements) - 1}" if request.elements else None,
        **{name: getattr(request, name) for name in TEXT_OPTIONS},
        "time": request.time_limit,
        "chdir": request.working_dir,
        # In a file pattern the percent sign is special. Append, because a restart would otherwise empty the file.
        "output": f"{request.run_dir}".replace("%", "%%") + f"/slurm-{'%A_%a' if request.elements else '%j'}.out",
        "open-mode": "append",
        "signal": f"USR2@{request.signal_lead_seconds}",
    }
    yield from (f"--{name}={_quoted(str(value))}" for name, value in options.items() if value is not None)
    yield "--requeue" if request.requeue == "self" else "--no-requeue"
    yield from map(_quoted, request.options)


def _settings(request: JobRequest) -> Iterator[str]:
    yield f"run_dir={shlex.quote(str(request.run_dir))}"
    yield f"run_dirs=({shlex.join(map(str, request.elements))})"
    yield f"script={shlex.quote(str(request.script))}"
    yield f"python={shlex.quote(request.python)}"
    yield f"rank_module={shlex.quote(request.rank_module)}"
    yield f"cpus_per_task={request.cpus_per_task}"
    yield f"requeue={request.requeue}"
    yield f"srun_options=({' '.join(request.srun_options)})"
    yield f"launcher=({' '.join(request.launcher)})"
    for name, value in sorted(request.extra_env.items()):
        yield f"export {name}={shlex.quote(value)}"
    yield "prepare() {"
    yield from (f"    {line}" for line in request.prologue or (":",))
    yield "}"


def _quoted(value: str) -> str:
    # sbatch reads double quotes in a directive; validate() has refused what they cannot hold.
    return value if re.fullmatch(r"[\w./:,=@%+-]+", value, flags=re.ASCII) else f'"{value}"'


def _number_problems(request: JobRequest) -> Problems:
    for key in ("nodes", "tasks_per_node", "cpus_per_task"):
        if getattr(request, key) < 1:
            yield key, f"is {getattr(request, key)}; must be at least 1"
    if not 1 <= request.signal_lead_seconds <= MAX_SIGNAL_LEAD:
        yield "signal_lead_seconds", f"is {request.signal_lead_seconds}; allowed: 1 to {MAX_SIGNAL_LEAD}"
    if request.requeue not in REQUEUE_MODES:
        yield "requeue", f"is {request.requeue!r}; allowed: {', '.join(REQUEUE_MODES)}"
    yield from time_limit_problems("time_limit", request.time_limit, request.signal_lead_seconds, "signal_lead_seconds")


def _text_problems(request: JobRequest) -> Problems:
    for key in ("run_dir", "working_dir"):
        path = str(getattr(request, key))
        if not path.startswith("/"):
            yield key, f"is {path!r}; must be an absolute path"
        # A backslash in --output disables every pattern, and %j with it.
        yield from text_problems(key, path, '"\\')
    yield from text_problems("python", request.python)
    for key in ("job_name", *TEXT_OPTIONS):
        yield from text_problems(key, getattr(request, key), '"\\')
