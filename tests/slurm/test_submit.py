"""Submission, and what the batch script does on a real cluster: stop, come back, or stay away."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError, ConfigError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm import client
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.job_records import read_job_records
from hsadml_dist.slurm.sbatch import SCRIPT_NAME, JobRequest, render
from hsadml_dist.slurm.site import Partition, SlurmSite
from hsadml_dist.slurm.submit import check_request, explain_refusal, submit
from tests.slurm.cluster_jobs import RANKS, count_events, job_output, preempt, rank_rows, show_job, wait_for, wait_state


def test_a_wrong_request_is_refused_before_anything_is_written(request_of: Callable[..., JobRequest]) -> None:
    request = request_of(time_limit="soon")
    with pytest.raises(ConfigError, match="time_limit"):
        submit(request)
    assert not (request.run_dir / SCRIPT_NAME).exists()


def test_a_missing_run_folder_is_told(request_of: Callable[..., JobRequest]) -> None:
    request = dataclasses.replace(request_of(), run_dir=Path("/no/such/run"))
    with pytest.raises(ClusterError, match="there is no such folder"):
        submit(request)


@pytest.fixture
def strange(folder: Path) -> Iterator[str]:
    """A name that shells, sbatch and file patterns each read in ways of their own."""
    yield "it's 100%j $HOME #1 ä"


@pytest.mark.slurm
def test_every_rank_runs_with_its_settings_whatever_the_folder_is_called(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], queue: Callable[..., str], strange: str
) -> None:
    request = request_of(strange, seconds=0, extra_env={"HSADML_TEST": "a 'b' $c"})
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
def test_the_exit_code_of_the_ranks_is_the_jobs(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], queue: Callable[..., str]
) -> None:
    request = request_of(seconds=0.2, code=3)
    found = wait_state(local_cluster, queue(local_cluster, request), "COMPLETED", "FAILED")
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "3:0", "0")


@pytest.mark.slurm
def test_a_friendly_site_gives_notice_and_the_job_comes_back(
    cluster: Cluster,
    request_of: Callable[..., JobRequest],
    queue: Callable[..., str],
    record_property: Callable[..., None],
) -> None:
    request = request_of()
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    begin = time.monotonic()
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    assert {row["signal"] for row in rank_rows(request) if row["event"] == "stopped"} == {12}, "the notice is USR2"
    wait_state(cluster, other, "RUNNING", "COMPLETED", seconds=5)
    wait_for(request, "finished", 1)
    seconds = time.monotonic() - begin
    record_property("requeue_seconds", seconds)
    assert seconds < 20, "cred_expire is 5 s: about 7 s are expected"
    found = wait_state(cluster, job, "COMPLETED")
    assert found["Restarts"] == "1"
    assert "not requeued" not in job_output(request)


@pytest.mark.slurm
def test_a_default_site_gives_none_and_the_job_comes_back(
    make_cluster: Callable[..., Cluster], request_of: Callable[..., JobRequest], queue: Callable[..., str]
) -> None:
    cluster = make_cluster(site="default")
    request = request_of()
    job = queue(cluster, request)
    wait_for(request, "started", 0)
    other = preempt(cluster)
    wait_for(request, "stopped", 0)
    # The nodes must be free at once, not KillWait (30 s) later.
    wait_state(cluster, other, "RUNNING", "COMPLETED", seconds=10)
    found = wait_state(cluster, job, "PENDING")
    assert found["Restarts"] == "1"
    # cred_expire holds it back for 121 s; the owner may shorten that once the old run has ended.
    wait_state(cluster, other, "COMPLETED")
    cluster.run(["scontrol", "update", f"jobid={job}", "starttime=now"])
    wait_for(request, "finished", 1)
    assert "not requeued" not in job_output(request)


@pytest.mark.slurm
def test_a_cancelled_job_stays_away(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], queue: Callable[..., str]
) -> None:
    request = request_of()
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    client.cancel(job, local_cluster.env())
    wait_for(request, "stopped", 0)
    wait_state(local_cluster, job, "CANCELLED")
    time.sleep(1)
    found = show_job(local_cluster, job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")


@pytest.mark.slurm
def test_without_requeue_a_stopped_job_ends_with_85(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], queue: Callable[..., str]
) -> None:
    request = request_of(requeue="none")
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    local_cluster.run(["scancel", "--signal=USR2", job])
    found = wait_state(local_cluster, job, "FAILED", "PENDING", "COMPLETED")
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "85:0", "0")


@pytest.mark.slurm
def test_a_signal_to_the_batch_shell_alone_does_not_part_it_from_its_ranks(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], queue: Callable[..., str]
) -> None:
    request = request_of(seconds=3)
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    for _ in range(3):
        local_cluster.run(["scancel", "--batch", "--signal=TERM", job])
        time.sleep(0.3)
    assert show_job(local_cluster, job)["JobState"] == "RUNNING"
    found = wait_state(local_cluster, job, "COMPLETED", "FAILED")
    assert found["JobState"] == "COMPLETED"
    assert count_events(request, "finished", 0) == RANKS


@pytest.mark.slurm
def test_a_crash_of_one_rank_ends_the_others(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], queue: Callable[..., str]
) -> None:
    request = request_of()
    job = queue(local_cluster, request)
    wait_for(request, "started", 0)
    begin = time.monotonic()
    local_cluster.run(["scancel", "--signal=KILL", f"{job}.0"])
    found = wait_state(local_cluster, job, "FAILED", "PENDING", "COMPLETED")
    assert time.monotonic() - begin < 15
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "0")


SITE = SlurmSite(
    partitions={"gpu": Partition(name="gpu", nodes=4, is_default=True), "long": Partition(name="long", nodes=2)}
)
SAID = ClusterError("sbatch failed: words of Slurm")
REQUEST = JobRequest(
    run_dir=None, nodes=2, tasks_per_node=1, cpus_per_task=1, python="python", working_dir=None, job_name="x"
)


def line(refusal: ClusterError = SAID, site: SlurmSite | None = SITE, **asked) -> str:
    return str(explain_refusal(dataclasses.replace(REQUEST, **asked), site, refusal))


def test_an_unknown_partition_gets_the_known_ones_and_the_nearest() -> None:
    assert line(partition="gpus") == (
        "--partition gpus: this cluster has no such partition (did you mean 'gpu'?); its partitions: gpu, long "
        "(sbatch failed: words of Slurm)"
    )


@pytest.mark.parametrize(("partition", "count"), [(None, 4), ("long", 2)])
def test_more_nodes_than_there_are_get_their_number(partition: str | None, count: int) -> None:
    assert line(partition=partition, nodes=5).startswith(f"--nodes 5: partition {partition or 'gpu'} has {count} (")
    assert line(partition=partition, nodes=count) == str(SAID)


def test_an_account_that_may_not_submit_is_named_and_so_is_a_missing_one() -> None:
    refusal = ClusterError("Invalid account or account/partition combination specified")
    assert line(refusal, account="lab").startswith("--account lab: may not submit to partition gpu; ")
    assert line(refusal).startswith("no --account is given; without one you may not submit to partition gpu; ")


def test_what_slurm_says_stays_where_nothing_is_known() -> None:
    assert line(partition="nosuch", site=None) == str(SAID)
    assert line(partition="nosuch", site=SlurmSite()) == str(SAID)


@pytest.mark.slurm
def test_a_real_cluster_is_asked_before_anything_is_queued(
    local_cluster: Cluster, request_of: Callable[..., JobRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", local_cluster.env()["SLURM_CONF"])
    request = request_of()
    for asked, begin in (({"partition": "nosuch"}, "--partition nosuch: "), ({"nodes": 99}, "--nodes 99: partition ")):
        with pytest.raises(ClusterError) as refused:
            check_request(dataclasses.replace(request, **asked))
        assert str(refused.value).startswith(begin)
        assert "\n" not in str(refused.value)
