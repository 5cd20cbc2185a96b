import datetime

import pytest

from hsadml_dist.slurm.answers import (
    FORGOTTEN,
    SlurmJob,
    parse_sacct_line,
    parse_shown_job,
    parse_squeue_line,
    parse_timestamp,
)

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
