import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.launch.cli.cmd_status import format_rows, queue_remarks
from hsadml_dist.run.run_state import RunState
from hsadml_dist.slurm.client import SlurmJob
from hsadml_dist.slurm.job_queue import QueueSnapshot
from hsadml_dist.slurm.job_records import record_job
from hsadml_dist.slurm.run_status import StatusRow
from tests.run.run_factory import checkpoint, make_attempt, make_run, stopped

HEAVY = {"torch", "numpy", "matplotlib", "pydantic", "yaml", "submitit", "rich.live"}
NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty working directory and cache, and no Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("SLURM_CONF", raising=False)


def squeue(body):
    Path("bin").mkdir(exist_ok=True)
    program = Path("bin/squeue")
    program.write_text(f"#!/bin/sh\necho called >>calls\n{body}\n")
    program.chmod(0o755)


def row(name="runs/one", **more):
    facts = {"phase": "running", "text": "running", "over": False, "state": RunState(phase="running")}
    return StatusRow(run=Path(name), **{**facts, **more})


def state(**more):
    facts = {"phase": "running", "step": 1200, "total_steps": 5000, "loss": 0.43211, "samples_per_second": 512.34}
    return RunState(**{**facts, "last_sign": NOW - 3, **more})


def test_status_lists_all_runs_under_runs_with_a_summary(capsys):
    make_attempt(make_run(Path("runs/a/fold-0"), steps=40), steps=range(1, 21))
    done = make_run(Path("runs/a/fold-1"), steps=40)
    make_attempt(done, steps=[40], events=[checkpoint(40, 1), {"event": "finished", "step": 40}])
    make_run(Path("runs/b"))
    assert cli.main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "step", "loss", "samples/s", "left", "seen", "state"]
    first = lines[1].split()
    assert first[:4] == ["runs/a/fold-0", "20/40", "0.0500", "80.0"] and first[-1] == "running"
    assert lines[2].split()[:2] == ["runs/a/fold-1", "40/40"]
    assert lines[2].endswith("finished")
    assert lines[3].endswith("not started")
    assert lines[4].endswith("hsadml train runs/b/config.yaml --run runs/b --nproc 1")
    assert lines[5:] == ["3 runs: 1 running, 1 finished, 1 not started"]


def test_single_run_gets_no_summary(capsys):
    make_attempt(make_run(Path("one")), steps=[1])
    assert cli.main(["status", "one"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_json_is_a_list_with_an_object_per_run(capsys):
    make_attempt(make_run(Path("runs/one")), steps=[1, 2])
    assert cli.main(["status", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["run"], found["phase"], found["step"], found["job"]) == ("runs/one", "running", 2, None)
    assert cli.main(["status", "--json", "runs"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_status_without_runs(capsys):
    assert cli.main(["status"]) == 0
    assert "runs/" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["status", "none"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("hsadml: run folder none: ") and message.count("\n") == 1


def test_runs_without_jobs_do_not_call_squeue(capsys):
    squeue("exit 0")
    make_attempt(make_run(Path("one")), steps=[1])
    assert cli.main(["status", "one"]) == 0
    assert not Path("calls").exists()
    assert capsys.readouterr().err == ""


def test_squeue_is_called_once_for_all_runs_and_again_with_fresh(capsys):
    squeue("echo '12|12|PENDING|N/A||Priority'; echo '13|13|PENDING|N/A||Resources'")
    for name, job in (("a", "12"), ("b", "13")):
        record_job(make_run(Path("runs") / name), job, "chain")
    assert cli.main(["status", "--fresh"]) == 0
    out = capsys.readouterr().out
    assert "12  queued (Priority)" in out
    assert "13  queued (Resources)" in out
    assert len(Path("calls").read_text().splitlines()) == 1
    assert cli.main(["status", "--fresh"]) == 0
    assert len(Path("calls").read_text().splitlines()) == 2


def test_status_without_slurm_shows_the_run_folders(capsys):
    record_job(make_run(Path("runs/one")), "12", "chain")
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr()
    assert "job 12" in printed.out
    assert printed.err.count("\n") == 1
    assert "squeue" in printed.err


def test_queue_remarks_report_old_answers_and_problems():
    assert queue_remarks(None, NOW) == []
    assert queue_remarks(QueueSnapshot(asked=NOW - 1, answered=NOW - 1), NOW) == []
    (remark,) = queue_remarks(QueueSnapshot(asked=NOW - 12, answered=NOW - 12), NOW)
    assert "12 s ago" in remark and "--fresh" in remark
    (remark,) = queue_remarks(QueueSnapshot(asked=NOW, answered=NOW - 300, problem="squeue failed"), NOW)
    assert remark.startswith("squeue failed") and "5 min ago" in remark


def test_rows_that_do_not_fit_become_blocks():
    rows = [
        row(state=state()),
        row(
            "runs/" + "x" * 50,
            phase="stopped",
            text="stopped, resumes as job 14 (Dependency)",
            state=state(samples_per_second=0.5),
            job=SlurmJob(job="14", state="PENDING"),
            reason="word " * 40,
            advice="to resume: " + "y" * 90,
        ),
    ]
    wide = format_rows(rows, NOW, None)
    assert wide[1].split() == ["runs/one", "1200/5000", "0.4321", "512", "3", "s", "-", "running"]
    assert wide[3] == "    " + ("word " * 40)
    narrow = format_rows(rows, NOW, 80)
    assert narrow[:2] == ["runs/one: running", "    step 1200/5000, loss 0.4321, 512 samples/s, seen 3 s ago"]
    assert narrow[3].endswith("0.500 samples/s, seen 3 s ago, job 14")
    words = [line for line in narrow if "word" in line]
    assert len(words) == 3
    assert all(len(line) <= 80 for line in words)
    assert [line for line in narrow if "yy" in line] == ["    to resume: " + "y" * 90], "a command stays on one line"


def test_expected_start_is_shown_for_pending_jobs_only():
    job = SlurmJob(job="14", state="PENDING", start=NOW + 7200)
    assert len(format_rows([row(phase="queued", text="queued", job=job)], NOW, None)) == 3
    assert len(format_rows([row(job=job)], NOW, None)) == 2
    soon = SlurmJob(job="14", state="PENDING", start=NOW + 5)
    assert len(format_rows([row(phase="queued", job=soon)], NOW, None)) == 2


def test_reason_of_a_failed_run_is_shown(capsys):
    run = make_run(Path("one"))
    reason = f"{run.path}: attempts 1, 2 and 3 ended without a new checkpoint, the last was killed"
    make_attempt(run, events=[{"event": "failed", "reason": reason, "exit_code": 1}])
    assert cli.main(["status", "one"]) == 0
    assert "\n    attempts 1, 2 and 3 ended without a new checkpoint, the last was killed\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "logs", "watch"])
def test_login_node_commands_import_no_heavy_packages(command):
    run = make_run(Path("one"))
    attempt = make_attempt(run, events=stopped(1, "rank 0: SIGTERM"))
    attempt.log(0).parent.mkdir()
    attempt.log(0).write_text("a line\n")
    code = (
        f"import sys; from hsadml_dist.launch.cli import main; code = main(['{command}', 'one']);"
        "print('LOADED', *sys.modules)"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.partition("LOADED")[2].split())
