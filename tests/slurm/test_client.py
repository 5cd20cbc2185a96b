"""Slurm's commands and the parsing of their answers."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm import client
from hsadml_dist.slurm.client import (
    END_STATES,
    FORGOTTEN,
    PENDING_STATES,
    SlurmJob,
    parse_sacct_line,
    parse_shown_job,
    parse_squeue_line,
    parse_timestamp,
)
from hsadml_dist.slurm.devcluster.cluster import Cluster

NOON = datetime.datetime(2026, 11, 23, 12).timestamp()
"""The time that the answers below name; Slurm prints local time."""
UNKNOWN_JOB = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


def tools(folder: Path, **scripts: str) -> dict[str, str]:
    """Return an environment whose PATH has only these programs, each a line of shell."""
    path = folder / "bin"
    path.mkdir(exist_ok=True)
    for name, script in scripts.items():
        program = path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return {"PATH": str(path)}


def test_parse_squeue_line_of_a_pending_element() -> None:
    job = parse_squeue_line("12_3|15|PENDING|2026-11-23T12:00:00||Priority")
    assert job == SlurmJob(job="12_3", raw="15", state="PENDING", reason="Priority", start=NOON)
    assert job.is_pending
    assert not job.has_ended


def test_parse_squeue_line_of_a_running_job() -> None:
    job = parse_squeue_line("12|12|RUNNING|2026-11-23T12:00:00|n[1-2]|None\n")
    assert job is not None
    assert (job.nodes, job.reason, job.is_pending, job.has_ended) == ("n[1-2]", "", False, False)


def test_parse_squeue_line_keeps_separators_in_the_reason() -> None:
    job = parse_squeue_line("1|1|PENDING|N/A||ReqNodeNotAvail, Reserved|x")
    assert job is not None
    assert job.reason == "ReqNodeNotAvail, Reserved|x"


@pytest.mark.parametrize("line", ["", "welcome to west", "1|2|3", "x|y|PENDING|N/A||None"])
def test_parse_lines_that_are_no_jobs_returns_none(line: str) -> None:
    assert parse_squeue_line(line) is None
    assert parse_sacct_line(line) is None


def test_parse_sacct_line_of_a_cancelled_element() -> None:
    job = parse_sacct_line("12_3|15|CANCELLED by 1000|2026-11-23T12:00:00|None assigned|0:15")
    assert job == SlurmJob(job="12_3", raw="15", state="CANCELLED", start=NOON, exit_code="0:15")
    assert job.has_ended


def test_parse_shown_job_reads_the_first_line() -> None:
    text = (
        "JobId=15 ArrayJobId=12 ArrayTaskId=3 JobName=a JobState=FAILED Reason=NonZeroExitCode Dependency=(null) "
        "ExitCode=3:0 StartTime=2026-11-23T12:00:00 ReqNodeList=(null) NodeList=n1\nJobId=16 JobState=RUNNING"
    )
    assert parse_shown_job("12_3", text) == SlurmJob(
        job="12_3", raw="15", state="FAILED", reason="NonZeroExitCode", start=NOON, nodes="n1", exit_code="3:0"
    )


@pytest.mark.parametrize("text", ["", "No jobs in the system"])
def test_parse_shown_job_without_a_job_is_forgotten(text: str) -> None:
    job = parse_shown_job("12", text)
    assert job.state == FORGOTTEN
    assert job.has_ended


def test_states_are_pending_or_ended_but_not_both() -> None:
    assert not PENDING_STATES & END_STATES
    assert SlurmJob(job="1", state="SPECIAL_EXIT").is_pending


@pytest.mark.parametrize("text", ["N/A", "Unknown", "", "NONE"])
def test_parse_timestamp_without_a_time_returns_none(text: str) -> None:
    assert parse_timestamp(text) is None


@pytest.mark.parametrize(
    ("answer", "job"), [("12\n", "12"), ("12;west\n", "12"), ("welcome to west\n12\n", "12"), ("  7  \n\n", "7")]
)
def test_parse_job_id_reads_the_last_line(answer: str, job: str) -> None:
    assert client.parse_job_id(answer) == job


@pytest.mark.parametrize("answer", ["", "\n", "Submitted batch job 12", "12 13"])
def test_parse_job_id_without_an_id_raises(answer: str) -> None:
    with pytest.raises(ClusterError, match="sbatch"):
        client.parse_job_id(answer)


def test_commands_without_slurm_raise_and_name_the_program(tmp_path: Path) -> None:
    env = tools(tmp_path)
    with pytest.raises(ClusterError, match="sbatch"):
        client.sbatch(tmp_path / "job.sbatch", env)
    with pytest.raises(ClusterError, match="scontrol"):
        client.job_state("1", env)
    assert client.job_is_known("1", env) is None


def test_commands_with_a_missing_slurm_conf_raise_and_name_it(tmp_path: Path) -> None:
    env = tools(tmp_path, squeue="exit 0", sbatch="exit 0") | {"SLURM_CONF": "/no/such/slurm.conf"}
    assert client.job_is_known("1", env) is None
    with pytest.raises(ClusterError, match=r"SLURM_CONF=/no/such/slurm\.conf"):
        client.sbatch(tmp_path / "job.sbatch", env)


@pytest.mark.parametrize(
    ("stderr", "has_conf", "fact"),
    [
        ("sbatch: error: Could not establish a configuration source", False, "SLURM_CONF is unset"),
        ("slurm_load_jobs error: Unable to contact slurm controller", True, "SLURM_CONF={conf}"),
        ("sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed", False, "x; sb"),
        ("", False, "sbatch failed: "),
    ],
)
def test_explain_gives_one_line_with_the_cause(tmp_path: Path, stderr: str, has_conf: bool, fact: str) -> None:
    conf = tmp_path / "slurm.conf"
    text = client.explain("sbatch", stderr, {"SLURM_CONF": str(conf)} if has_conf else {})
    assert fact.format(conf=conf) in text
    assert "\n" not in text


def test_show_job_of_an_unknown_job_is_forgotten(tmp_path: Path) -> None:
    assert client.show_job("1", tools(tmp_path, scontrol=UNKNOWN_JOB)).state == FORGOTTEN
    assert client.job_state("1", tools(tmp_path, scontrol="echo 'Job 1_1 not found'; exit 1")) is None
    shown = "JobId=7 JobName=x UserId=me(1) JobState=COMPLETING Reason=TimeLimit Comment=NoJobState=X"
    assert client.job_state("7", tools(tmp_path, scontrol=f"echo '{shown}'")) == "COMPLETING"


def test_job_is_known_distinguishes_no_from_no_answer(tmp_path: Path) -> None:
    assert client.job_is_known("1", tools(tmp_path, squeue="echo 1")) is True
    assert client.job_is_known("1", tools(tmp_path, squeue="exit 0")) is False
    assert client.job_is_known("1", tools(tmp_path, squeue=UNKNOWN_JOB)) is False
    assert client.job_is_known("1", tools(tmp_path, squeue="echo 'Unable to contact' >&2; exit 1")) is None


@pytest.mark.slurm
def test_job_lifecycle_on_a_real_cluster(local_cluster: Cluster) -> None:
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
