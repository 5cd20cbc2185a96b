"""Reading Slurm's answers, and saying why there is none."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm import client
from hsadml_dist.slurm.client import (
    FORGOTTEN,
    SlurmJob,
    parse_sacct_line,
    parse_shown_job,
    parse_squeue_line,
    parse_timestamp,
)
from hsadml_dist.slurm.devcluster.cluster import Cluster

SHOWN = "JobId=7 JobName=x UserId=me(1) JobState=COMPLETING Reason=TimeLimit Dependency=(null) Comment=NoJobState=X"


def tools(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment whose PATH holds only the given programs."""
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


@pytest.mark.parametrize(("answer", "job"), [("12\n", "12"), ("12;west\n", "12"), ("welcome to west\n13\n", "13")])
def test_job_id_is_read(answer: str, job: str) -> None:
    assert client.parse_job_id(answer) == job


@pytest.mark.parametrize("answer", ["", "\n", "Submitted batch job 12", "12 13"])
def test_an_answer_without_id_is_an_error(answer: str) -> None:
    with pytest.raises(ClusterError, match="gave no job id but"):
        client.parse_job_id(answer)


def test_job_state_is_read() -> None:
    assert client.parse_job_state(SHOWN) == "COMPLETING"
    assert client.parse_job_state("No jobs in the system") is None


def test_without_slurm_there_is_one_clear_line(tmp_path: Path) -> None:
    env = tools(tmp_path)
    with pytest.raises(ClusterError, match="Slurm is not installed here: sbatch is not on PATH"):
        client.sbatch(tmp_path / "job.sbatch", env)
    with pytest.raises(ClusterError, match="scontrol is not on PATH"):
        client.job_state("1", env)
    assert client.job_is_known("1", env) is None


def test_a_missing_configuration_is_told_at_once(tmp_path: Path) -> None:
    env = tools(tmp_path, squeue="exit 0", sbatch="exit 0") | {"SLURM_CONF": "/no/such/slurm.conf"}
    assert client.job_is_known("1", env) is None
    with pytest.raises(ClusterError, match=r"SLURM_CONF is /no/such/slurm.conf: there is no such file"):
        client.sbatch(tmp_path / "job.sbatch", env)


@pytest.mark.parametrize(
    ("stderr", "conf", "said"),
    [
        ("sbatch: error: Could not establish a configuration source", None, "SLURM_CONF is unset"),
        ("slurm_load_jobs error: Unable to contact slurm controller", "HERE", "its controller does not answer"),
        (
            "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed",
            None,
            "failed: sb",
        ),
        ("", None, "it gave no reason"),
    ],
)
def test_failures_are_explained_in_one_line(tmp_path: Path, stderr: str, conf: str | None, said: str) -> None:
    (tmp_path / "slurm.conf").touch()
    env = {} if conf is None else {"SLURM_CONF": conf.replace("HERE", str(tmp_path / "slurm.conf"))}
    text = client.explain("sbatch", stderr, env)
    assert said in text
    assert "\n" not in text


def test_requeue_of_a_job_that_is_back_already_is_no_error(tmp_path: Path) -> None:
    client.scontrol_requeue("1", tools(tmp_path, scontrol="echo 'Job is pending execution for job 1' >&2; exit 1"))
    with pytest.raises(ClusterError, match="scontrol requeue failed: Access/permission denied"):
        client.scontrol_requeue("1", tools(tmp_path, scontrol="echo 'Access/permission denied' >&2; exit 1"))


def test_known_job(tmp_path: Path) -> None:
    assert client.job_is_known("1", tools(tmp_path, squeue="echo 1")) is True
    assert client.job_is_known("1", tools(tmp_path, squeue="exit 0")) is False
    unknown = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    assert client.job_is_known("1", tools(tmp_path, squeue=unknown)) is False
    assert client.job_is_known("1", tools(tmp_path, squeue="echo 'Unable to contact' >&2; exit 1")) is None


@pytest.mark.slurm
def test_a_job_from_queue_to_end(local_cluster: Cluster) -> None:
    env = local_cluster.env()
    script = local_cluster.folder / "job.sbatch"
    script.write_text("#!/bin/sh\n#SBATCH --output=/dev/null\nexec sleep 60\n")
    job = client.sbatch(script, env)
    assert client.job_state(job, env) in ("PENDING", "RUNNING")
    assert client.job_is_known(job, env) is True
    client.cancel(job, env)
    assert client.job_state(job, env) in ("CANCELLED", "COMPLETING")
    assert client.job_state("4000000", env) is None
    assert client.job_is_known("4000000", env) is False
    client.cancel(job, env)
    script.write_text("#!/bin/sh\n#SBATCH --partition=nowhere\n")
    with pytest.raises(ClusterError, match=r"sbatch failed: .*invalid partition specified: nowhere"):
        client.sbatch(script, env)


NOON = datetime.datetime(2026, 11, 23, 12).timestamp()


def test_a_line_of_squeue():
    job = parse_squeue_line("12_3|15|PENDING|2026-11-23T12:00:00||Priority")
    assert job == SlurmJob(job="12_3", raw="15", state="PENDING", reason="Priority", start=NOON)
    assert job.is_pending
    assert not job.has_ended
    job = parse_squeue_line("12|12|RUNNING|2026-11-23T12:00:00|n[1-2]|None\n")
    assert (job.nodes, job.reason, job.is_pending, job.has_ended) == ("n[1-2]", "", False, False)


def test_a_reason_may_hold_what_separates_the_fields():
    assert parse_squeue_line("1|1|PENDING|N/A||ReqNodeNotAvail, Reserved|x").reason == "ReqNodeNotAvail, Reserved|x"


@pytest.mark.parametrize("line", ["", "welcome to west", "1|2|3", "x|y|PENDING|N/A||None"])
def test_other_lines_are_no_jobs(line):
    assert parse_squeue_line(line) is None
    assert parse_sacct_line(line) is None


def test_a_line_of_sacct():
    job = parse_sacct_line("12_3|15|CANCELLED by 1000|2026-11-23T12:00:00|None assigned|0:15")
    assert job == SlurmJob(job="12_3", raw="15", state="CANCELLED", start=NOON, exit_code="0:15")
    assert job.has_ended


def test_what_scontrol_shows():
    text = (
        "JobId=15 ArrayJobId=12 ArrayTaskId=3 JobName=a JobState=FAILED Reason=NonZeroExitCode Dependency=(null) "
        "ExitCode=3:0 StartTime=2026-11-23T12:00:00 ReqNodeList=(null) NodeList=n1\nJobId=16 JobState=RUNNING"
    )
    expected = SlurmJob(
        job="12_3", raw="15", state="FAILED", reason="NonZeroExitCode", start=NOON, nodes="n1", exit_code="3:0"
    )
    assert parse_shown_job("12_3", text) == expected
    assert parse_shown_job("12", "nothing of the kind").state == FORGOTTEN


@pytest.mark.parametrize("text", ["N/A", "Unknown", "", "NONE"])
def test_no_time_is_no_time(text):
    assert parse_timestamp(text) is None
