"""Submission: refused requests, explanations of refusals, requeue modes, and submission to a real cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError, ConfigError, RunLockedError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm import client
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import REQUEUE_MODES, read_job_records
from hsadml_dist.slurm.sbatch import SCRIPT_NAME, JobRequest, render
from hsadml_dist.slurm.site import Partition, SlurmSite
from hsadml_dist.slurm.submit import check_request, explain_refusal, requeue_problem, requeue_warning, submit
from tests.slurm.cluster_jobs import RANKS, job_output, rank_rows, wait_empty, wait_for, wait_state

RequestOf = Callable[..., JobRequest]
Queue = Callable[[Cluster, JobRequest], str]

SITE = SlurmSite(
    partitions={"gpu": Partition(name="gpu", nodes=4, is_default=True), "long": Partition(name="long", nodes=2)}
)
REFUSAL = ClusterError("sbatch failed: words of Slurm")
REQUEST = JobRequest(
    run_dir=Path("/run"),
    nodes=2,
    tasks_per_node=1,
    cpus_per_task=1,
    python="python",
    working_dir=Path("/"),
    job_name="x",
)
ALL_CODES = frozenset(range(256))


def site(*codes: int, hold: int | None = None) -> SlurmSite:
    """Return a site that requeues jobs by these exit codes."""
    return SlurmSite(requeue_exit=frozenset(codes), requeue_exit_hold=frozenset() if hold is None else {hold})


def preempting(mode: str, grace_seconds: int) -> SlurmSite:
    """Return a site whose default partition preempts jobs, and another one that does not."""
    low = Partition(name="low", is_default=True, preempt_mode=mode, grace_seconds=grace_seconds)
    return SlurmSite(partitions={"low": low, "high": Partition(name="high")})


def explained(refusal: ClusterError = REFUSAL, known: SlurmSite | None = SITE, **changes: object) -> str:
    """Return the explanation of a refused request."""
    return str(explain_refusal(dataclasses.replace(REQUEST, **changes), known, refusal))


def test_submit_with_an_invalid_request_writes_nothing(request_of: RequestOf) -> None:
    request = request_of(time_limit="soon")
    with pytest.raises(ConfigError, match="time_limit"):
        submit(request)
    assert not (request.run_dir / SCRIPT_NAME).exists()


def test_submit_with_a_missing_run_folder_names_it(request_of: RequestOf) -> None:
    request = dataclasses.replace(request_of(), run_dir=Path("/no/such/run"))
    with pytest.raises(ClusterError, match="run_dir is /no/such/run"):
        submit(request)


@pytest.mark.parametrize(
    ("known", "problems"),
    [
        (site(), {}),
        (site(1, 70), {}),
        (site(1, 70, 85), {"none": "(RequeueExit=1,70,85)"}),
        (site(hold=85), {"none": "(RequeueExitHold=85)"}),
        (site(*ALL_CODES), dict.fromkeys(REQUEUE_MODES, "(RequeueExit=0,1,2,")),
        (preempting("REQUEUE", 0), {}),
        (preempting("CANCEL", 5), {}),
        (preempting("CANCEL", 0), {"self": "partition low"}),
    ],
)
def test_requeue_problem_names_mode_and_option_in_one_line(known: SlurmSite, problems: dict[str, str]) -> None:
    for mode in REQUEUE_MODES:
        problem = requeue_problem(known, mode)
        assert (problem is not None) == (mode in problems), problem
        if problem is not None:
            assert problem.mode == mode and problems[mode] in problem.reason and problem.remedy
            assert str(problem).startswith(f"--requeue {mode}: ") and "\n" not in str(problem)


def test_requeue_problem_depends_on_the_partition() -> None:
    known = preempting("CANCEL", 0)
    assert requeue_problem(known, "self", "low") is not None
    assert requeue_problem(known, "self", "high") is None
    assert requeue_problem(known, "self", "nowhere") is None


def test_requeue_warning_names_the_failure_codes_that_are_requeued() -> None:
    assert requeue_warning(site(85)) is None
    warning = requeue_warning(site(1, 70, 85)) or ""
    assert "exit with 1,70 (RequeueExit=1,70,85)" in warning


def test_explain_refusal_of_an_unknown_partition_names_the_known_and_nearest() -> None:
    line = explained(partition="gpus")
    assert line.startswith("--partition gpus: ")
    assert "allowed: gpu, long" in line and "'gpu'" in line and str(REFUSAL) in line


@pytest.mark.parametrize(("partition", "nodes"), [(None, 4), ("long", 2)])
def test_explain_refusal_of_too_many_nodes_names_their_number(partition: str | None, nodes: int) -> None:
    assert explained(partition=partition, nodes=5).startswith(
        f"--nodes 5: partition {partition or 'gpu'} has {nodes} ("
    )
    assert explained(partition=partition, nodes=nodes) == str(REFUSAL)


def test_explain_refusal_names_the_account_or_that_it_is_missing() -> None:
    refusal = ClusterError("Invalid account or account/partition combination specified")
    assert explained(refusal, account="lab").startswith("--account lab: ")
    assert explained(refusal).startswith("no --account ")


def test_explain_refusal_without_site_keeps_the_text_of_slurm() -> None:
    assert explained(partition="nosuch", known=None) == str(REFUSAL)
    assert explained(partition="nosuch", known=SlurmSite()) == str(REFUSAL)


@pytest.mark.slurm
def test_submit_passes_settings_to_ranks_in_a_folder_with_special_characters(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    # Shells, sbatch and file patterns each interpret this name in their own way.
    request = request_of("it's 100%j $HOME #1 ä", seconds=0, extra_env={"HSADML_TEST": "a 'b' $c"})
    request = dataclasses.replace(request, working_dir=request.run_dir, job_name="two words", gres="gpu:1")
    job = queue(local_cluster, request)
    found = wait_state(local_cluster, job, "COMPLETED", "FAILED")
    assert found["JobState"] == "COMPLETED", job_output(request)
    started = [row for row in rank_rows(request) if row["event"] == "started"]
    assert len(started) == RANKS
    assert sorted(row["node"] for row in started) == ["n1", "n1", "n2", "n2"]
    for row in started:
        assert row["arguments"] == ["-u", "-m", "hsadml_dist.launch.rank", str(request.run_dir)]
        assert row["env"] == "a 'b' $c"
        assert row["cwd"] == str(request.run_dir)
    assert (request.run_dir / f"slurm-{job}.out").exists()
    assert (request.run_dir / SCRIPT_NAME).read_text() == render(request)
    assert [(row.job, row.requeue) for row in read_job_records(RunFolder(request.run_dir))] == [(job, "self")]


@pytest.mark.slurm
def test_check_request_refuses_a_second_job_of_a_run(
    local_cluster: Cluster, request_of: RequestOf, queue: Queue
) -> None:
    request = request_of(requeue="none")
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    with pytest.raises(RunLockedError, match=rf"job {job} .*hsadml cancel"):
        check_request(request)
    client.cancel(job, local_cluster.env())
    wait_empty(local_cluster)
    assert "Job" in check_request(request) and "to start at" in check_request(request)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("change", "start", "slurm_text"),
    [
        ({"partition": "nowhere"}, "--partition nowhere: ", "invalid partition specified: nowhere"),
        ({"nodes": 99}, "--nodes 99: ", "Node count specification invalid|Requested node configuration is not avail"),
        ({"tasks_per_node": 99}, "sbatch failed: ", "Requested node configuration is not available"),
        ({"gres": "gpu:99"}, "sbatch failed: ", "Requested node configuration is not available"),
        ({"constraint": "a100"}, "sbatch failed: ", "Invalid feature specification"),
    ],
)
def test_check_request_reports_what_slurm_would_refuse_and_writes_nothing(
    local_cluster: Cluster,
    request_of: RequestOf,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    start: str,
    slurm_text: str,
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(local_cluster.conf_file))
    request = dataclasses.replace(request_of(), **change)
    before = sorted(request.run_dir.iterdir())
    with pytest.raises(ClusterError, match=slurm_text) as caught:
        check_request(request)
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert sorted(request.run_dir.iterdir()) == before
