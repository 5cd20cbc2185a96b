import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.launch.cli import cmd_logs
from hsadml_dist.slurm.job_records import record_job
from tests.run.run_factory import add_events, add_rows, make_attempt, make_run, stopped

LOGS = [sys.executable, "-m", "hsadml_dist.launch.cli", "logs"]


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[3]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run():
    return make_run(Path("one"), steps=40)


def is_one_line_about(message, subject):
    return message.startswith(f"hsadml: {subject}") and message.count("\n") == 1


def write(attempt, text, rank=0):
    attempt.log(rank).parent.mkdir(exist_ok=True)
    with attempt.log(rank).open("a") as file:
        file.write(text)


def test_logs_prints_the_log_of_a_rank_in_the_newest_attempt_unchanged(run, capfdbinary):
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


def test_logs_before_the_first_attempt_prints_the_job_output(run, capfd):
    assert cli.main(["logs", "one"]) == 2
    assert is_one_line_about(capfd.readouterr().err, "run folder one: ")
    record_job(run, "12", "chain")
    record_job(run, "13", "chain")
    (run.path / "slurm-12.out").write_text("from 12\n")
    (run.path / "slurm-13.out").write_text("from 13\n")
    assert cli.main(["logs", "one"]) == 0
    assert capfd.readouterr().out == "from 13\n"


def test_empty_log_refers_to_the_job_output(run, capfd):
    write(make_attempt(run), "")
    assert cli.main(["logs", "one"]) == 0
    message = capfd.readouterr().err
    assert is_one_line_about(message, "") and "rank 0, attempt 1" in message and "--output" not in message
    assert cli.main(["logs", "one", "--output"]) == 2
    assert is_one_line_about(capfd.readouterr().err, "run folder one: ")
    record_job(run, "12", "chain")
    (run.path / "slurm-12.out").write_text("step 1/40\n")
    assert cli.main(["logs", "one"]) == 0
    assert "--output" in capfd.readouterr().err
    assert cli.main(["logs", "one", "--output"]) == 0
    assert capfd.readouterr().out == "step 1/40\n"


def test_follow_output_continues_from_job_to_job(run, capfd, monkeypatch):
    attempt = make_attempt(run)
    record_job(run, "12", "chain")
    record_job(run, "13", "chain")
    (run.path / "slurm-12.out").write_text("one\n")

    def pause(seconds):
        with (run.path / "slurm-12.out").open("a") as file:
            file.write("two\n")
        (run.path / "slurm-13.out").write_text("three\n")
        add_events(attempt, [{"event": "finished", "step": 40}])

    monkeypatch.setattr(cmd_logs, "STATUS_SECONDS", 0.0)
    monkeypatch.setattr(cmd_logs.time, "sleep", pause)
    monkeypatch.setattr(cmd_logs, "query_queue_for", lambda runs, before: None)
    assert cli.main(["logs", "one", "-f", "--output"]) == 0
    assert capfd.readouterr().out == "-- slurm-12.out --\none\ntwo\n-- slurm-13.out --\nthree\n-- finished --\n"


def test_output_of_an_array_is_next_to_its_run_folders(capfd):
    run = make_run(Path("folds/fold-1"))
    record_job(run, "12_1", "self")
    Path("folds/slurm-12_1.out").write_text("from element 1\n")
    Path("folds/slurm-12_0.out").write_text("from element 0\n")
    assert cli.main(["logs", "folds/fold-1"]) == 0
    assert capfd.readouterr().out == "from element 1\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["one", "--rank", "7"], "--rank 7: attempt 1 .* 0 to 1"),
        (["one", "--rank", "-1"], "--rank -1: .*0"),
        (["one", "--attempt", "3"], "--attempt 3: .* 1 to 1"),
        (
            ["one", "--attempt", "1", "--output"],
            "--attempt and --output",
        ),
        (["none"], "run folder none: "),
    ],
)
def test_invalid_arguments_are_usage_errors(run, capsys, words, text):
    attempt = make_attempt(run)
    write(attempt, "", rank=0)
    write(attempt, "", rank=1)
    assert cli.main(["logs", *words]) == 2
    message = capsys.readouterr().err
    assert is_one_line_about(message, "") and re.search(text, message)


def test_folder_with_several_runs_is_a_usage_error(capsys):
    for name in ("a", "b"):
        make_run(Path("runs") / name)
    assert cli.main(["logs", "runs"]) == 2
    message = capsys.readouterr().err
    assert is_one_line_about(message, "run folder runs: ") and "2 runs (a, b" in message


def test_follow_continues_over_a_restart_and_ends_with_the_run(run):
    record_job(run, "12", "chain")
    (run.path / "slurm-12.out").write_text("hello from the job\n")
    process = subprocess.Popen([*LOGS, "one", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hang_guard = threading.Timer(240, process.kill)
    hang_guard.start()
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
        out, err = process.communicate(timeout=300)
    finally:
        hang_guard.cancel()
        process.kill()
    assert (process.returncode, out) == (0, "the last\n-- finished --\n")
    assert err == ""


def test_follow_from_an_attempt_prints_later_attempts_too(run, capfd):
    for text in ("one\n", "two\n", "three\n"):
        attempt = make_attempt(run)
        write(attempt, text)
    add_events(attempt, [{"event": "failed", "reason": "no space", "exit_code": 1}])
    assert cli.main(["logs", "one", "-f", "--attempt", "2"]) == 0
    assert capfd.readouterr().out == "-- attempt 2 --\ntwo\n-- attempt 3 --\nthree\n-- failed: no space --\n"


def test_follow_ends_with_a_stopped_run_that_no_job_resumes(run, capfd):
    attempt = make_attempt(run, events=stopped(1, "rank 0: SIGINT"))
    write(attempt, "one\n")
    assert cli.main(["logs", "one", "-f"]) == 0
    *_, line, title = capfd.readouterr().out.splitlines()
    assert line == "one" and title.startswith("-- stopped: ") and "SIGINT" in title


def test_follow_waits_for_the_log_of_a_rank(run, capfd, monkeypatch):
    attempt = make_attempt(run)

    def pause(seconds):
        write(attempt, "one\n", rank=3)
        add_events(attempt, [{"event": "finished", "step": 40}])

    monkeypatch.setattr(cmd_logs, "STATUS_SECONDS", 0.0)
    monkeypatch.setattr(cmd_logs.time, "sleep", pause)
    assert cli.main(["logs", "one", "-f", "--rank", "3"]) == 0
    assert capfd.readouterr().out == "-- attempt 1 --\none\n-- finished --\n"


def test_follow_ends_quietly_on_ctrl_c(run):
    write(make_attempt(run), "one\n")
    process = subprocess.Popen([*LOGS, "one", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(2)] == ["-- attempt 1 --\n", "one\n"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "", "")
