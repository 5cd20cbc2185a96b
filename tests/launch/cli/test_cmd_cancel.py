"""``hsadml cancel`` with fake Slurm programs; tests/slurm/test_status_on_cluster.py uses a real cluster."""

import os
from pathlib import Path

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.launch.cli import cmd_cancel
from hsadml_dist.slurm.job_queue import query_queue
from hsadml_dist.slurm.job_records import record_job
from tests.run.run_factory import make_attempt, make_run, stopped

SQUEUE = 'cat queue 2>/dev/null; echo "squeue $*" >>calls'
SCANCEL = """echo "scancel $1" >>calls
sed -i "s/^\\($1|99|\\)[A-Z]*/\\1CANCELLED/" queue"""


@pytest.fixture(autouse=True)
def fake_slurm(tmp_path, monkeypatch):
    """squeue prints the file ``queue``, scancel changes it, and both record their calls in ``calls``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(cmd_cancel, "POLL_SECONDS", 0.01)
    install("squeue", SQUEUE)
    install("scancel", SCANCEL)
    Path("calls").touch()


def install(name, body):
    Path("bin").mkdir(exist_ok=True)
    (Path("bin") / name).write_text(f"#!/bin/sh\n{body}\n")
    (Path("bin") / name).chmod(0o755)


def queue(*lines):
    Path("queue").write_text("".join(f"{line}\n" for line in lines))


def line(job, state):
    return f"{job}|99|{state}|N/A||None"


def cancelled():
    return [line.split()[1] for line in Path("calls").read_text().splitlines() if line.startswith("scancel")]


def make(name, *jobs):
    run = make_run(Path(name))
    for job in jobs:
        record_job(run, job, "chain")
    return run


def test_pending_jobs_are_cancelled_before_running_ones_newest_first(capsys):
    make("one", "10", "11", "12", "13", "14")
    jobs = (("14", "PENDING"), ("12", "RUNNING"), ("11", "COMPLETED"), ("13", "PENDING"), ("10", "PENDING"))
    queue(*(line(*job) for job in jobs))
    assert cli.main(["cancel", "one"]) == 0
    assert cancelled() == ["14", "13", "10", "12"]
    printed = capsys.readouterr().out.splitlines()
    assert [(line.split()[0], line.split()[3]) for line in printed] == [("one:", job) for job in cancelled()]


def test_successor_queued_meanwhile_is_cancelled_too(capsys):
    make("one", "12")
    queue(line("12", "RUNNING"))
    row = '{"job": "13", "requeue": "chain", "after": "12", "backend": "sbatch", "time": 5.0}'
    successor = f"[ $1 = 13 ] || {{ echo '{row}' >>one/jobs.jsonl; echo '{line('13', 'PENDING')}' >>queue; }}"
    install("scancel", f"{SCANCEL}\n{successor}")
    assert cli.main(["cancel", "one"]) == 0
    assert cancelled() == ["12", "13"]
    assert "CANCELLED" in Path("queue").read_text()
    assert "PENDING" not in Path("queue").read_text()


def test_completing_job_is_waited_for_because_it_may_queue_a_successor(capsys):
    make("one", "12")
    queue(line("12", "RUNNING"))
    row = '{"job": "13", "requeue": "chain", "after": "12", "backend": "sbatch", "time": 5.0}'
    install("scancel", SCANCEL.replace("CANCELLED", "COMPLETING"))
    queues = f"""echo '{row}' >>one/jobs.jsonl; echo '{line("13", "PENDING")}' >>queue"""
    ends = f"grep -q '^13' queue || {{ {queues}; }}; sed -i 's/COMPLETING/CANCELLED/' queue"
    ends = f"grep -q COMPLETING queue && [ $(grep -c squeue calls) -gt 3 ] && {{ {ends}; }}"
    install("squeue", f"{SQUEUE}\n{ends}; exit 0")
    assert cli.main(["cancel", "one"]) == 0
    assert cancelled() == ["12", "13"]


def test_cancel_reports_jobs_that_do_not_end_in_time(capsys, monkeypatch):
    monkeypatch.setattr(cmd_cancel, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(cmd_cancel, "QUIET_SECONDS", 0.1)
    make("one", "12")
    queue(line("12", "COMPLETING"))
    assert cli.main(["cancel", "one"]) == 0
    waiting, timeout, *_ = capsys.readouterr().out.splitlines()
    assert "job 12" in waiting and "job 12" in timeout and "hsadml status" in timeout


def test_one_refusal_does_not_prevent_cancelling_the_other_runs(capsys):
    make("runs/a", "12_0")
    make("runs/b", "12_1")
    queue(line("12_0", "RUNNING"), line("12_1", "RUNNING"))
    denied = "scancel: error: Kill job error on job id 12_0: Access/permission denied"
    install("scancel", f'[ $1 = 12_0 ] && {{ echo "{denied}" >&2; exit 1; }}\n{SCANCEL}')
    assert cli.main(["cancel", "runs"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("runs/b: cancelled job 12_1") and printed.out.count("\n") == 1
    assert printed.err.startswith("hsadml: runs/a: job 12_0: ") and printed.err.count("\n") == 1


def test_run_without_live_jobs_is_reported(capsys):
    make("none")
    make("over", "12")
    assert cli.main(["cancel", "none", "over"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["none", "over"]
    assert cancelled() == []


def test_local_training_is_not_cancelled_but_explained(capsys):
    make_attempt(make_run(Path("one")), steps=[1])
    assert cli.main(["cancel", "one"]) == 0
    assert "touch one/STOP" in capsys.readouterr().out
    assert Path("calls").read_text() == "", "Slurm need not be queried"
    make_attempt(make_run(Path("two")), events=stopped(1, "rank 0: SIGINT"))
    assert cli.main(["cancel", "two"]) == 0
    assert "STOP" not in capsys.readouterr().out


def test_next_queue_query_after_cancel_is_not_cached(capsys):
    make("one", "12")
    queue(line("12", "RUNNING"))
    assert query_queue().find("12").state == "RUNNING"
    assert cli.main(["cancel", "one"]) == 0
    assert query_queue().find("12").state == "CANCELLED"


def test_missing_run_and_missing_slurm_are_one_line(capsys, monkeypatch, tmp_path):
    assert cli.main(["cancel"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("hsadml: cancel: ") and message.count("\n") == 1
    make("one", "12")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert cli.main(["cancel", "one"]) == 1
    message = capsys.readouterr().err
    assert "squeue" in message and message.count("\n") == 1
