"""Turn a recipe into a Slurm job: what ``hsadml submit`` does, and the way to submit from Python."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hsadml_dist.addresses import is_url
from hsadml_dist.config.recipe import Recipe
from hsadml_dist.errors import ConfigError, Fault, UsageError
from hsadml_dist.jobs.prepare import check_run, prepare_run, resolve_run_folder
from hsadml_dist.jobs.start_check import check_start
from hsadml_dist.slurm.by_submitit import submit_by_submitit
from hsadml_dist.slurm.environment import rank_interpreter, render_prologue, wrap_ranks
from hsadml_dist.slurm.job_records import Backend, RequeueMode
from hsadml_dist.slurm.profiles import Profile, load_profile, profile_problems
from hsadml_dist.slurm.sbatch import JobRequest
from hsadml_dist.slurm.submit import check_request, submit

DEFAULT_SIGNAL_LEAD_SECONDS = 30
RANK_MODULE = "hsadml_dist.launch.rank"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of a job that override its profile. None leaves an option to the profile and then to the site.

    The help of ``hsadml submit`` shows the descriptions.

    Attributes:
        cpus_per_task: CPUs of each rank: one, plus one for each of data.workers. Default 1.
        partition: Slurm partition; by default the site's.
        account: Account to charge; by default the site's.
        qos: Quality of service; by default the site's.
        constraint: Required node features.
        gres: Resources of each node, for instance gpu:4.
        mem: Memory of each node, for instance 64G; by default the site's.
        time: Time limit, for instance 30 (minutes), 12:00:00 or 2-00:00:00; by default the site's.
        requeue: How a stopped job resumes. self: it requeues itself. chain: its successor is queued when it starts,
            and runs next; this needs sbatch on the nodes. none: it ends with exit code 85. Default self.
        signal_lead: Seconds before the time limit at which the job is signalled: time for one checkpoint. Default 30.
    """

    cpus_per_task: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    mem: str | None = None
    time: str | None = None
    requeue: RequeueMode | None = None
    signal_lead: int | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run, or an array of runs, to submit to Slurm.

    Attributes:
        recipe: Path or shipped name.
        overrides: ``key=value`` strings.
        tasks_per_node: Ranks on each node.
        run: The run folder, or the folder of an array's run folders. None means a folder under ``runs``, named after
            the recipe and its fingerprint.
        smoke: Run two steps and an evaluation in a folder of its own.
        folds: Held-out folds. More than one fold, or more than one seed, makes an array.
        profile: Path or name of a profile.
        backend: Writer of the batch script and launcher of the ranks.
        options: Options that override the profile.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    nodes: int
    tasks_per_node: int
    run: Path | None = None
    smoke: bool = False
    folds: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    profile: str | None = None
    backend: Backend = "sbatch"
    options: JobOptions = field(default_factory=JobOptions)

    @property
    def world_size(self) -> int:
        """Number of ranks of each run."""
        return self.nodes * self.tasks_per_node

    @property
    def is_array(self) -> bool:
        """True if this makes more than one run."""
        return len(self.folds) > 1 or len(self.seeds) > 1


def submit_training(submission: Submission, request: JobRequest | None = None) -> str:
    """Check everything, write the run folders and queue the job.

    Args:
        submission: The run or runs.
        request: What :func:`plan_job` returns for it; None means to call it.

    Returns:
        The job id.

    Raises:
        HsadmlError: Something that the user can repair, found before anything is queued.
    """
    request = request or plan_job(submission)
    check_request(request)
    for run, overrides in array_elements(submission):
        prepare_run(submission.recipe, overrides, run, submission.smoke, submission.world_size)
    request.run_dir.mkdir(parents=True, exist_ok=True)
    return submit(request) if submission.backend == "sbatch" else submit_by_submitit(request, run_rank)


def run_rank(run: str) -> None:
    """Train a run as one rank of a job. At module level, since submitit pickles it by name."""
    importlib.import_module(RANK_MODULE).run_rank_and_exit(run)


def plan_job(submission: Submission) -> JobRequest:
    """Return the request to Slurm, after all checks that need no shards and, if they can be read here, those that do.

    Nothing is written.

    Raises:
        ConfigError: The recipe, the profile or an option is invalid.
        UsageError: The number of nodes or tasks is below 1, or a fold or seed is repeated.
    """
    _check_numbers(submission)
    checked = [
        check_run(submission.recipe, overrides, run, submission.smoke, submission.world_size, need_shards=False)
        for run, overrides in array_elements(submission)
    ]
    loaded, runs = checked[0][0], [folder.path.resolve() for _, folder in checked]
    check_start(loaded)
    run_dir = _array_folder(submission).resolve() if submission.is_array else runs[0]
    profile = Profile() if submission.profile is None else load_profile(submission.profile)
    request = job_request(
        run_dir,
        _merge_options(profile, submission.options),
        nodes=submission.nodes,
        tasks_per_node=submission.tasks_per_node,
        mounts=[str(Path.cwd()), str(run_dir), *_shard_folders(loaded.recipe)],
    )
    return replace(request, elements=tuple(runs) if submission.is_array else ())


def job_request(
    run_dir: Path, profile: Profile, *, nodes: int, tasks_per_node: int, mounts: Sequence[str]
) -> JobRequest:
    """Return the request for a job with the options of a profile.

    Args:
        run_dir: The run folder, absolute.
        profile: The options.
        nodes: Number of nodes.
        tasks_per_node: Ranks on each node.
        mounts: Folders that a container needs to see.
    """
    wrapper = wrap_ranks(profile, mounts)
    return JobRequest(
        run_dir=run_dir,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        cpus_per_task=profile.cpus_per_task or 1,
        python=rank_interpreter(profile, sys.executable),
        working_dir=Path.cwd(),
        job_name=run_dir.name,
        partition=profile.partition,
        account=profile.account,
        qos=profile.qos,
        constraint=profile.constraint,
        gres=profile.gres,
        mem=profile.mem,
        time_limit=profile.time,
        requeue=profile.requeue or "self",
        signal_lead_seconds=profile.signal_lead or DEFAULT_SIGNAL_LEAD_SECONDS,
        options=profile.options,
        prologue=tuple(render_prologue(profile)),
        srun_options=wrapper.srun_options,
        launcher=wrapper.launcher,
    )


def array_elements(submission: Submission) -> list[tuple[Path | None, tuple[str, ...]]]:
    """Return run folder (None means the default one) and overrides of each run: one for each pair of fold and seed."""
    elements = []
    for fold, seed in itertools.product(submission.folds or (None,), submission.seeds or (None,)):
        named = [("fold", "data.fold", fold), ("seed", "train.seed", seed)]
        run = submission.run
        if submission.is_array:
            name = "-".join(f"{name}-{value}" for name, _, value in named if value is not None)
            run = _array_folder(submission) / name
        chosen = (f"{key}={value}" for _, key, value in named if value is not None)
        elements.append((run, (*submission.overrides, *chosen)))
    return elements


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Parse a list of numbers such as ``0,2`` or ``0-4``.

    Raises:
        UsageError: ``text`` is something else.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"{option} {text!r}: expected numbers such as 0,2 or 0-4")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def _merge_options(profile: Profile, options: JobOptions) -> Profile:
    """Return the profile with the options that are set; raise ConfigError if they contradict each other."""
    merged = replace(profile, **{name: value for name, value in asdict(options).items() if value is not None})
    faults = [Fault(where="job", key=key, problem=problem) for key, problem in profile_problems(merged)]
    if faults:
        raise ConfigError(faults)
    return merged


def _shard_folders(recipe: Recipe) -> Sequence[str]:
    """Return the folder of the shards, to be mounted in a container; empty for shards behind a URL."""
    shards = recipe.data.shards
    return [] if is_url(shards) else [str(Path(shards).absolute())]


def _array_folder(submission: Submission) -> Path:
    """Return the folder that holds an array's run folders."""
    if submission.run is not None:
        return submission.run
    default = resolve_run_folder(submission.recipe, submission.overrides, None, False, submission.world_size)
    return default.with_name(f"{default.name}-array")


def _check_numbers(submission: Submission) -> None:
    for option, value in (("--nodes", submission.nodes), ("--tasks-per-node", submission.tasks_per_node)):
        if value < 1:
            raise UsageError(f"{option} {value}: at least 1")
    for option, values in (("--folds", submission.folds), ("--seeds", submission.seeds)):
        if len(set(values)) < len(values):
            raise UsageError(f"{option} {','.join(map(str, values))}: a number is repeated; give each once")
