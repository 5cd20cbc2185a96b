"""From a recipe to a job: what `hsadml submit` does, as functions; also the way to submit from Python."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from hsadml_dist.data.remote import is_url
from hsadml_dist.errors import ConfigError, Fault, UsageError
from hsadml_dist.jobs.prepare import RUNS, find_recipe, prepare_run, resolve_recipe, resolve_run_folder
from hsadml_dist.launch.rank import run_rank_and_exit
from hsadml_dist.slurm.by_submitit import submit_by_submitit
from hsadml_dist.slurm.environment import rank_interpreter, render_prologue, wrap_ranks
from hsadml_dist.slurm.job_records import Backend, RequeueMode
from hsadml_dist.slurm.profiles import Profile, load_profile, profile_problems
from hsadml_dist.slurm.sbatch import JobRequest
from hsadml_dist.slurm.submit import check_request, submit

LEAD_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What of a job a profile may give, too; None leaves it to the profile, and then to the site.

    Attributes:
        partition: Slurm's partition.
        account: The account that pays.
        qos: The quality of service.
        constraint: Features that the nodes must have.
        gres: Generic resources of each node, for instance ``gpu:4``.
        mem: Memory of each node, for instance ``64G``.
        time: Time limit, for instance ``12:00:00``.
        cpus_per_task: CPUs of each rank.
        requeue: How a stopped job comes back.
        signal_lead: Seconds before its end at which the job is told.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    mem: str | None = None
    time: str | None = None
    cpus_per_task: int | None = None
    requeue: RequeueMode | None = None
    signal_lead: int | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A training, or an array of them, for Slurm.

    Attributes:
        recipe: Path or shipped name.
        overrides: ``key=value`` texts.
        nodes: Number of nodes.
        tasks_per_node: Ranks on each node.
        run: The run folder, or the folder of an array's; None: under ``runs``, named by what is trained.
        smoke: Two steps and a verdict in a folder of its own.
        folds: Held-out folds; more than one, or more than one seed, make an array.
        seeds: Seeds.
        profile: Path or name of a profile.
        backend: Who writes the batch script and starts the ranks.
        options: What else to ask for; it counts before the profile.
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
        """Number of ranks of each training."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True, kw_only=True)
class ArrayElement:
    """One training of a submission.

    Attributes:
        run: Its run folder.
        overrides: All its settings beside the recipe's.
    """

    run: Path | None
    overrides: tuple[str, ...]


def submit_training(asked: Submission) -> str:
    """Check everything, write the run folders and queue the job; returns its id.

    Raises:
        HsadmlError: What a user can repair, before anything is queued; see :mod:`hsadml_dist.errors`.
    """
    request = plan_job(asked)
    check_request(request)
    for element in elements(asked):
        prepare_run(asked.recipe, element.overrides, element.run, asked.smoke, asked.world_size)
    request.run_dir.mkdir(parents=True, exist_ok=True)
    return submit(request) if asked.backend == "sbatch" else submit_by_submitit(request, run_rank_and_exit)


def plan_job(asked: Submission) -> JobRequest:
    """Return what would be asked of Slurm; writes nothing and looks at no shards.

    Raises:
        ConfigError: The recipe is wrong.
        UsageError: Numbers of nodes, tasks, folds or seeds make no sense.
    """
    _refuse_nonsense(asked)
    runs = [
        resolve_run_folder(asked.recipe, element.overrides, element.run, asked.smoke, asked.world_size).resolve()
        for element in elements(asked)
    ]
    home = runs[0] if _is_single(asked) else _home(asked).resolve()
    profile = _with_options(Profile() if asked.profile is None else load_profile(asked.profile), asked.options)
    around = wrap_ranks(profile, [str(Path.cwd()), str(home), *_shards(asked)])
    return JobRequest(
        run_dir=home,
        elements=() if _is_single(asked) else tuple(runs),
        nodes=asked.nodes,
        tasks_per_node=asked.tasks_per_node,
        cpus_per_task=profile.cpus_per_task or 1,
        python=rank_interpreter(profile, sys.executable),
        working_dir=Path.cwd(),
        job_name=home.name,
        partition=profile.partition,
        account=profile.account,
        qos=profile.qos,
        constraint=profile.constraint,
        gres=profile.gres,
        mem=profile.mem,
        time_limit=profile.time,
        requeue=profile.requeue or "self",
        signal_lead_seconds=profile.signal_lead or LEAD_SECONDS,
        options=profile.options,
        prologue=tuple(render_prologue(profile)),
        srun_options=around.srun_options,
        launcher=around.launcher,
    )


def elements(asked: Submission) -> Iterator[ArrayElement]:
    """Yield the trainings of a submission: one for each fold and seed."""
    if _is_single(asked):
        yield ArrayElement(run=asked.run, overrides=(*asked.overrides, *_pair(asked.folds, asked.seeds)))
        return
    home = _home(asked)
    for fold, seed in itertools.product(asked.folds or (None,), asked.seeds or (None,)):
        parts = [f"fold-{fold}"] * (fold is not None) + [f"seed-{seed}"] * (seed is not None)
        yield ArrayElement(
            run=home / "-".join(parts),
            overrides=(*asked.overrides, *_pair(() if fold is None else (fold,), () if seed is None else (seed,))),
        )


def _with_options(profile: Profile, options: JobOptions) -> Profile:
    """Return the profile with what was given beside it.

    Raises:
        ConfigError: The two do not fit each other.
    """
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    merged = replace(profile, **{name: value for name, value in given.items() if value is not None})
    faults = [Fault(where="job", key=key, problem=problem) for key, problem in profile_problems(merged)]
    if faults:
        raise ConfigError(faults)
    return merged


def _shards(asked: Submission) -> Iterator[str]:
    """Yield the folder of shards, for a container to see; those behind an address need none."""
    shards = resolve_recipe(asked.recipe, asked.overrides, asked.smoke, asked.world_size).recipe.data.shards
    if not is_url(shards):
        yield str(Path(shards).absolute())


def _is_single(asked: Submission) -> bool:
    return len(asked.folds) <= 1 and len(asked.seeds) <= 1


def _pair(folds: Sequence[int], seeds: Sequence[int]) -> Iterator[str]:
    yield from (f"data.fold={fold}" for fold in folds)
    yield from (f"train.seed={seed}" for seed in seeds)


def _home(asked: Submission) -> Path:
    """Return the folder of an array's run folders."""
    if asked.run is not None:
        return asked.run
    plain = resolve_recipe(asked.recipe, asked.overrides, False, asked.world_size).recipe
    return RUNS / f"{find_recipe(asked.recipe).stem}-{plain.fingerprint()}-array"


def _refuse_nonsense(asked: Submission) -> None:
    for option, value in (("--nodes", asked.nodes), ("--tasks-per-node", asked.tasks_per_node)):
        if value < 1:
            raise UsageError(f"{option} {value}: at least 1")
    for option, values in (("--folds", asked.folds), ("--seeds", asked.seeds)):
        if len(set(values)) < len(values):
            raise UsageError(f"{option} {','.join(map(str, values))}: names one of them twice")


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of a text such as ``0,2`` or ``0-4``.

    Raises:
        UsageError: It is no such text.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"{option} {text!r}: expected numbers such as 0,2 or 0-4")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
