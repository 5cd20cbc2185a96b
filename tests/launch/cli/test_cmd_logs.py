import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.launch.cli import cmd_logs as module
from hsadml_dist.slurm.job_records import record_job
from tests.run.run_factory import add_events, add_rows, make_attempt, make_run, stopped

LOGS = [sys.executable, "-m", "hsadml_dist.launch.cli", "logs"]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[3]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run():
    return make_run(Path("one"), steps=40)


def write(attempt, text, rank=0):
    attempt.log(rank).parent.mkdir(exist_ok=True)
    with attempt.log(rank).open("a") as file:
        file.write(text)


def test_the_newest_attempts_log_of_a_rank_as_it_is(run, capfdbinary):
    first, second = make_attempt(run), make_attempt(run)
    write(first, "old\n")
    write(second, "new of 0\n")
    write(second, "neu für 1\nno end", rank=1)
    assert cli.main(["logs", "one"]) == 0
    assert capfdbinary.readouterr().out == b"new of 0\n"
    assert cli.main(["logs", "one", "--rank", "1"]) == 0
    assert capfdbinary.readouterr().out == "neu für 1\nno end".encode()
    assert cli.main(["logs", "one", "--attempt", "1"]) == 0
    assert capfdbinary.readouterr().out == b"old\n"


def test_before_the_first_attempt_it_is_what_the_job_printed(run, capfd):
    assert cli.main(["logs", "one"]) == 2
    assert capfd.readouterr().err == "hsadml: run folder one: nothing was started yet, so there is no log\n"
    record_job(run, "12", "chain")
    record_job(run, "13", "chain")
    (run.path / "slurm-12.out").write_text("from 12\n")
    (run.path / "slurm-13.out").write_text("from 13\n")
    assert cli.main(["logs", "one"]) == 0
    assert capfd.readouterr().out == "from 13\n"


def test_an_empty_log_points_at_the_jobs_output(run, capfd):
    write(make_attempt(run), "")
    assert cli.main(["logs", "one"]) == 0
    assert capfd.readouterr().err == "hsadml: the log of rank 0, attempt 1, is empty\n"
    assert cli.main(["logs", "one", "--output"]) == 2
    assert capfd.readouterr().err == "hsadml: run folder one: no Slurm job of it has printed anything\n"
    record_job(run, "12", "chain")
    (run.path / "slurm-12.out").write_text("step 1/40\n")
    assert cli.main(["logs", "one"]) == 0
    assert capfd.readouterr().err.endswith("is empty; --output shows what the job printed\n")
    assert cli.main(["logs", "one", "--output"]) == 0
    assert capfd.readouterr().out == "step 1/40\n"


def test_the_output_is_followed_from_job_to_job(run, capfd, monkeypatch):
    attempt = make_attempt(run)
    record_job(run, "12", "chain")
    record_job(run, "13", "chain")
    (run.path / "slurm-12.out").write_text("one\n")

    def pause(seconds):
        with (run.path / "slurm-12.out").open("a") as file:
            file.write("two\n")
        (run.path / "slurm-13.out").write_text("three\n")
        add_events(attempt, [{"event": "finished", "step": 40}])

    monkeypatch.setattr(module, "ROW_SECONDS", 0.0)
    monkeypatch.setattr(module.time, "sleep", pause)
    monkeypatch.setattr(module, "ask", lambda runs, before: None)
    assert cli.main(["logs", "one", "-f", "--output"]) == 0
    assert capfd.readouterr().out == "-- slurm-12.out --\none\ntwo\n-- slurm-13.out --\nthree\n-- finished --\n"


def test_an_arrays_output_lies_beside_its_runs(capfd):
    run = make_run(Path("folds/fold-1"))
    record_job(run, "12_1", "self")
    Path("folds/slurm-12_1.out").write_text("from element 1\n")
    Path("folds/slurm-12_0.out").write_text("from element 0\n")
    assert cli.main(["logs", "folds/fold-1"]) == 0
    assert capfd.readouterr().out == "from element 1\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["one", "--rank", "7"], "--rank 7: attempt 1 has logs of ranks 0 to 1"),
        (["one", "--rank", "-1"], "--rank -1: at least 0"),
        (["one", "--attempt", "3"], "--attempt 3: the attempts of one are 1 to 1"),
        (
            ["one", "--attempt", "1", "--output"],
            "--attempt and --output: choose one; a job's output is not cut by attempts",
        ),
        (["none"], "run folder none: does not exist"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(run, capsys, words, text):
    attempt = make_attempt(run)
    write(attempt, "", rank=0)
    write(attempt, "", rank=1)
    assert cli.main(["logs", *words]) == 2
    assert capsys.readouterr().err == f"hsadml: {text}\n"


def test_a_folder_of_runs_is_too_many(capsys):
    for name in ("a", "b"):
        make_run(Path("runs") / name)
    assert cli.main(["logs", "runs"]) == 2
    assert capsys.readouterr().err == "hsadml: run folder runs: holds 2 runs (a, b, ...); name one of them\n"


def test_following_goes_on_over_a_restart_and_ends_with_the_run(run):
    record_job(run, "12", "chain")
    (run.path / "slurm-12.out").write_text("hello from the job\n")
    process = subprocess.Popen([*LOGS, "one", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ends_in_time = threading.Timer(60, process.kill)
    ends_in_time.start()
    try:
        # Each is written only once the line before was seen.
        assert [process.stdout.readline() for _ in range(2)] == ["-- slurm-12.out --\n", "hello from the job\n"]
        first = make_attempt(run)
        write(first, "one\n")
        assert [process.stdout.readline() for _ in range(2)] == ["-- attempt 1 --\n", "one\n"]
        add_rows(first, [1])
        write(first, "two\nno end")
        assert process.stdout.readline() == "two\n"
        second = make_attempt(run)
        write(second, "three\n")
        assert [process.stdout.readline() for _ in range(3)] == ["no end\n", "-- attempt 2 --\n", "three\n"]
        add_events(second, [{"event": "finished", "step": 40}])
        write(second, "the last\n")
        out, err = process.communicate(timeout=30)
    finally:
        ends_in_time.cancel()
        process.kill()
    assert (process.returncode, out) == (0, "the last\n-- finished --\n")
    assert err == ""


def test_following_from_an_attempt_on_shows_those_after_it_too(run, capfd):
    for text in ("one\n", "two\n", "three\n"):
        attempt = make_attempt(run)
        write(attempt, text)
    add_events(attempt, [{"event": "failed", "reason": "no space", "exit_code": 1}])
    assert cli.main(["logs", "one", "-f", "--attempt", "2"]) == 0
    assert capfd.readouterr().out == "-- attempt 2 --\ntwo\n-- attempt 3 --\nthree\n-- failed: no space --\n"


def test_following_a_stopped_run_that_nothing_starts_again_ends(run, capfd):
    attempt = make_attempt(run, events=stopped(1, "rank 0: SIGINT"))
    write(attempt, "one\n")
    assert cli.main(["logs", "one", "-f"]) == 0
    assert capfd.readouterr().out.endswith("one\n-- stopped: told to stop by SIGINT (rank 0) --\n")


def test_a_rank_without_a_log_yet_is_waited_for(run, capfd, monkeypatch):
    attempt = make_attempt(run)

    def pause(seconds):
        write(attempt, "one\n", rank=3)
        add_events(attempt, [{"event": "finished", "step": 40}])

    monkeypatch.setattr(module, "ROW_SECONDS", 0.0)
    monkeypatch.setattr(module.time, "sleep", pause)
    assert cli.main(["logs", "one", "-f", "--rank", "3"]) == 0
    assert capfd.readouterr().out == "-- attempt 1 --\none\n-- finished --\n"


def test_ctrl_c_is_quiet(run):
    write(make_attempt(run), "one\n")
    process = subprocess.Popen([*LOGS, "one", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(2)] == ["-- attempt 1 --\n", "one\n"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
