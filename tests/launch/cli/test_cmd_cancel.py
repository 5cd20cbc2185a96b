"""Cancelling against programs that play Slurm; tests/slurm/test_status_on_cluster.py does it on a real one."""

import os
from pathlib import Path

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.launch.cli import cmd_cancel as module
from hsadml_dist.slurm.job_queue import query_queue
from hsadml_dist.slurm.job_records import record_job
from tests.run.run_factory import make_attempt, make_run, stopped

SQUEUE = 'cat queue 2>/dev/null; echo "squeue $*" >>calls'
SCANCEL = """echo "scancel $1" >>calls
sed -i "s/^\\($1|99|\\)[A-Z]*/\\1CANCELLED/" queue"""


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """squeue shows the file ``queue``; scancel changes it and is noted in ``calls``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    plays("squeue", SQUEUE)
    plays("scancel", SCANCEL)
    Path("calls").touch()


def plays(name, body):
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


def test_those_that_wait_go_first_the_newest_before_the_others(capsys):
    make("one", "10", "11", "12", "13", "14")
    jobs = (("14", "PENDING"), ("12", "RUNNING"), ("11", "COMPLETED"), ("13", "PENDING"), ("10", "PENDING"))
    queue(*(line(*job) for job in jobs))
    assert cli.main(["cancel", "one"]) == 0
    assert cancelled() == ["14", "13", "10", "12"]
    assert capsys.readouterr().out.splitlines() == [
        "one: cancelled job 14 (waited)",
        "one: cancelled job 13 (waited)",
        "one: cancelled job 10 (waited)",
        "one: cancelled job 12 (ran)",
    ]


def test_a_successor_that_is_queued_meanwhile_is_cancelled_too(capsys):
    make("one", "12")
    queue(line("12", "RUNNING"))
    row = '{"job": "13", "requeue": "chain", "after": "12", "backend": "sbatch", "time": 5.0}'
    successor = f"[ $1 = 13 ] || {{ echo '{row}' >>one/jobs.jsonl; echo '{line('13', 'PENDING')}' >>queue; }}"
    plays("scancel", f"{SCANCEL}\n{successor}")
    assert cli.main(["cancel", "one"]) == 0
    assert cancelled() == ["12", "13"]
    assert "CANCELLED" in Path("queue").read_text()
    assert "PENDING" not in Path("queue").read_text()


def test_a_job_that_is_ending_is_waited_for_since_it_may_have_queued_another(capsys):
    make("one", "12")
    queue(line("12", "RUNNING"))
    row = '{"job": "13", "requeue": "chain", "after": "12", "backend": "sbatch", "time": 5.0}'
    plays("scancel", SCANCEL.replace("CANCELLED", "COMPLETING"))
    queues = f"""echo '{row}' >>one/jobs.jsonl; echo '{line("13", "PENDING")}' >>queue"""
    ends = f"grep -q '^13' queue || {{ {queues}; }}; sed -i 's/COMPLETING/CANCELLED/' queue"
    ends = f"grep -q COMPLETING queue && [ $(grep -c squeue calls) -gt 3 ] && {{ {ends}; }}"
    plays("squeue", f"{SQUEUE}\n{ends}; exit 0")
    assert cli.main(["cancel", "one"]) == 0
    assert cancelled() == ["12", "13"]


def test_who_waits_for_an_end_too_long_says_so(capsys, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(module, "SAY_SECONDS", 0.1)
    make("one", "12")
    queue(line("12", "COMPLETING"))
    assert cli.main(["cancel", "one"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "waiting for the end of job 12" in told
    assert "still ending: job 12; hsadml status tells when it is over" in told


def test_all_runs_of_a_folder_and_one_refusal_does_not_spare_the_others(capsys):
    make("runs/a", "12_0")
    make("runs/b", "12_1")
    queue(line("12_0", "RUNNING"), line("12_1", "RUNNING"))
    denied = "scancel: error: Kill job error on job id 12_0: Access/permission denied"
    plays("scancel", f'[ $1 = 12_0 ] && {{ echo "{denied}" >&2; exit 1; }}\n{SCANCEL}')
    assert cli.main(["cancel", "runs"]) == 1
    told = capsys.readouterr()
    assert told.out == "runs/b: cancelled job 12_1 (ran)\n"
    assert told.err.count("\n") == 1
    assert "runs/a: job 12_0: scancel failed" in told.err


def test_a_run_without_jobs_says_so(capsys):
    make("none")
    make("over", "12")
    assert cli.main(["cancel", "none", "over"]) == 0
    assert capsys.readouterr().out == "none: has no job\nover: no job is left\n"
    assert cancelled() == []


def test_a_local_training_is_not_slurms_to_end(capsys):
    make_attempt(make_run(Path("one")), steps=[1])
    assert cli.main(["cancel", "one"]) == 0
    assert capsys.readouterr().out == (
        "one: trains without Slurm: Ctrl-C where it was started ends it, or touch one/STOP\n"
    )
    assert Path("calls").read_text() == "", "no need to ask Slurm"
    make_attempt(make_run(Path("two")), events=stopped(1, "rank 0: SIGINT"))
    assert cli.main(["cancel", "two"]) == 0
    assert capsys.readouterr().out == "two: has no job\n"


def test_the_next_status_asks_anew(capsys):
    make("one", "12")
    queue(line("12", "RUNNING"))
    assert query_queue().find("12").state == "RUNNING"
    assert cli.main(["cancel", "one"]) == 0
    assert query_queue().find("12").state == "CANCELLED"


def test_no_run_or_no_slurm_is_one_line(capsys, monkeypatch, tmp_path):
    assert cli.main(["cancel"]) == 2
    assert capsys.readouterr().err == "hsadml: cancel: name at least one run folder\n"
    make("one", "12")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert cli.main(["cancel", "one"]) == 1
    assert "Slurm is not installed here" in capsys.readouterr().err
