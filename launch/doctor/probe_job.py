"""The doctor's job: the same batch script as a training's, with other ranks."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.errors import ClusterError
from hsadml_dist.launch.doctor.check_results import CheckResult
from hsadml_dist.launch.doctor.disk_checks import existing_parent, temporary_folder
from hsadml_dist.launch.doctor.rank_checks import check_reports
from hsadml_dist.launch.doctor.rank_report import RankReport, read_rank_reports
from hsadml_dist.run.folder import RunFolder, replace_text
from hsadml_dist.slurm import client
from hsadml_dist.slurm.environment import rank_interpreter, render_prologue, wrap_ranks
from hsadml_dist.slurm.profiles import Profile
from hsadml_dist.slurm.sbatch import JobRequest, render
from hsadml_dist.slurm.site import Partition, try_query_site

RANK_MODULE = "hsadml_dist.launch.rank"
NODE_MODULE = "hsadml_dist.launch.doctor.probe_rank"
LIMIT_SECONDS = 600
LOOK_SECONDS = 1.0
SETTLE_SECONDS = 10.0
"""How long answers of ranks that have ended may take to be seen here."""
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"),
    *("DEADLINE", "SPECIAL_EXIT", "REVOKED"),
}


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """The job that is asked for.

    Attributes:
        nodes: Number of nodes.
        tasks_per_node: Ranks on each node.
        cpus_per_task: CPUs of each rank; None: the profile's, else one.
        partition: Slurm's partition; None: the site's default.
        profile: What every job on the cluster needs.
    """

    nodes: int
    tasks_per_node: int
    cpus_per_task: int | None
    partition: str | None
    profile: Profile

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.tasks_per_node


def check_nodes(
    asked: ProbeRequest, run: Path, timeout: float, say: Callable[[str], None], env: Mapping[str, str] | None = None
) -> Iterator[CheckResult]:
    """Yield what the ranks of a job find.

    Args:
        asked: The job.
        run: A run folder, or where one shall be: the ranks meet in a new folder on its file system.
        timeout: Seconds to wait for the job.
        say: What is called with a line about how far the job is.
        env: Whole environment for Slurm's commands; this process's own if None.

    Raises:
        ClusterError: Slurm refused the job, or it did not end in time.
        ConfigError: It cannot be written as a script that Slurm would take.
    """
    site = try_query_site(env)
    limit = None if site is None else site.partition(asked.partition)
    with temporary_folder(existing_parent(run)) as folder:
        text = script(asked, folder, limit)
        answers, word = run_job(text, folder, timeout, say, env)
        yield from check_reports(answers, asked.world_size, word, _workers(run))


def script(asked: ProbeRequest, folder: Path, limit: Partition | None) -> str:
    """Return the batch script.

    Args:
        asked: The job.
        folder: Where the ranks write their answers; all nodes must see it.
        limit: The partition that it goes to, where that is known.

    Raises:
        ConfigError: It cannot be written as a script that Slurm would take.
    """
    profile = asked.profile
    around = wrap_ranks(profile, [str(folder)])
    longest = LIMIT_SECONDS if limit is None else min(limit.max_seconds or LIMIT_SECONDS, LIMIT_SECONDS)
    request = JobRequest(
        run_dir=folder,
        nodes=asked.nodes,
        tasks_per_node=asked.tasks_per_node,
        cpus_per_task=asked.cpus_per_task or profile.cpus_per_task or 1,
        python=rank_interpreter(profile, sys.executable),
        working_dir=Path.cwd(),
        job_name="hsadml-doctor",
        partition=asked.partition,
        account=profile.account,
        qos=profile.qos,
        constraint=profile.constraint,
        gres=profile.gres,
        mem=profile.mem,
        time_limit=str(max(1, longest // 60)),
        requeue="none",
        options=profile.options,
        prologue=tuple(render_prologue(profile)),
        srun_options=around.srun_options,
        launcher=around.launcher,
    )
    return render(request).replace(RANK_MODULE, NODE_MODULE)


def run_job(
    text: str, folder: Path, timeout: float, say: Callable[[str], None], env: Mapping[str, str] | None = None
) -> tuple[dict[int, RankReport], str]:
    """Queue the job, wait for its end and return the answers by rank, and the last line of its output.

    The job is cancelled when this ends before it, for whatever reason.

    Args:
        text: The batch script.
        folder: The folder that it writes to.
        timeout: Seconds to wait.
        say: What is called with a line about how far the job is.
        env: Whole environment for Slurm's commands; this process's own if None.

    Raises:
        ClusterError: Slurm refused the job, or it did not end in time.
    """
    path = folder / "job.sbatch"
    replace_text(path, text)
    job = client.sbatch(path, env)
    with _cancelled_if_left(job, say, env):
        state = _await_end(job, time.monotonic() + timeout, say, env)
    if state is not None and state != "COMPLETED":
        say(f"job {job}: {state}")
    return wait_for_reports(folder), last_line(folder)


def wait_for_reports(folder: Path, seconds: float = SETTLE_SECONDS) -> dict[int, RankReport]:
    """Return the answers once all that are there tell of a meeting or of why there was none, or time is up."""
    deadline = time.monotonic() + seconds
    while True:
        answers = read_rank_reports(folder)
        whole = answers and all(answer.together is not None or answer.error for answer in answers.values())
        if whole or time.monotonic() > deadline:
            return answers
        time.sleep(LOOK_SECONDS / 2)


def last_line(folder: Path) -> str:
    """Return the last line that the job wrote; empty: none."""
    lines = [line.strip() for path in folder.glob("slurm-*.out") for line in path.read_text().splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _workers(run: Path) -> int | None:
    """Return the loader workers of each rank of an existing run."""
    config = RunFolder(run).config
    return load_recipe(config).recipe.data.workers if config.is_file() else None


def _await_end(job: str, deadline: float, say: Callable[[str], None], env: Mapping[str, str] | None) -> str | None:
    known: str | None = ""
    while True:
        state = client.job_state(job, env)
        if state is None or state in ENDED:
            return state
        if state != known:
            known = state
            say(f"job {job}: {state}")
        if time.monotonic() > deadline:
            raise ClusterError(f"the doctor's job {job} was still {state} when --timeout was over")
        time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def _cancelled_if_left(job: str, say: Callable[[str], None], env: Mapping[str, str] | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(ClusterError):
            client.cancel(job, env)
            say(f"job {job}: cancelled")
        raise
