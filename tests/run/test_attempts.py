import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hsadml_dist.atomic import write_text
from hsadml_dist.errors import ExitCode, RunError, RunLockedError
from hsadml_dist.run import attempts
from hsadml_dist.run.attempts import current_holder, find_rendezvous, is_superseded, start_attempt
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import JsonlWriter

ME = current_holder("me", {})
ELSEWHERE = replace(ME, token="other", host="elsewhere", boot="another boot", pid=1, born=1)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def hold(run, holder, silent_for=0.0):
    """Create an attempt of ``holder`` whose last heartbeat was ``silent_for`` seconds ago."""
    attempt = run.attempt(len(run.attempts()) + 1)
    attempt.path.mkdir(parents=True)
    write_text(attempt.record, json.dumps({"attempt": attempt.number, "started": 0.0, **asdict(holder)}))
    attempt.heartbeat.touch()
    beat = attempt.heartbeat.stat().st_mtime - silent_for  # by the clock of the file system
    os.utime(attempt.heartbeat, (beat, beat))
    return attempt


@pytest.fixture
def sleeper():
    """Another live process."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.stdin.close()
    process.wait()


def stat_of(pid):
    """Return the fields of ``/proc/PID/stat``, the state first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def holder_of(pid):
    return replace(ME, token="other", pid=pid, born=int(stat_of(pid)[19]))


def test_first_attempt_has_number_1_and_records_its_holder(run):
    attempt = start_attempt(run, ME, {"world_size": 4})
    record = json.loads(attempt.record.read_text())
    assert attempt.number == record["attempt"] == 1
    assert record["world_size"] == 4
    assert {name: record[name] for name in asdict(ME)} == asdict(ME)
    assert abs(record["started"] - time.time()) < 60
    assert attempt.heartbeat.exists()


def test_current_holder_describes_process_and_job():
    me = current_holder("t", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"})
    assert (me.token, me.host, me.pid, me.job, me.restart) == ("t", socket.gethostname(), os.getpid(), "7", 2)
    assert me.born > 0
    assert (ME.job, ME.restart) == (None, 0)


def test_live_holder_locks_the_run(run, sleeper):
    hold(run, holder_of(sleeper.pid))
    with pytest.raises(RunLockedError, match=f"attempt 1 .*process {sleeper.pid} ") as caught:
        start_attempt(run, ME, {})
    assert caught.value.exit_code == ExitCode.RUN_LOCKED
    assert len(run.attempts()) == 1


def test_dead_holder_on_this_host_is_replaced_at_once(run, sleeper):
    holder = holder_of(sleeper.pid)
    hold(run, holder)
    sleeper.kill()
    sleeper.wait()
    assert start_attempt(run, ME, {}).number == 2


def test_zombie_holder_is_replaced(run, sleeper):
    holder = holder_of(sleeper.pid)
    hold(run, holder)
    sleeper.kill()
    deadline = time.monotonic() + 60
    while stat_of(sleeper.pid)[0] != "Z":
        assert time.monotonic() < deadline
    assert start_attempt(run, ME, {}).number == 2


def test_holder_whose_process_id_was_reused_is_replaced(run, sleeper):
    holder = holder_of(sleeper.pid)
    hold(run, replace(holder, born=holder.born - 1))
    assert start_attempt(run, ME, {}).number == 2


def test_process_id_is_not_compared_across_boots(run):
    hold(run, replace(ME, token="other", boot="another boot", pid=2**22 + 1))
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {})


def test_holder_of_an_earlier_restart_of_this_job_is_replaced(run):
    hold(run, replace(ELSEWHERE, job="7", restart=0))
    me = replace(ME, job="7", restart=1)
    assert start_attempt(run, me, {}).number == 2


@pytest.mark.parametrize(("job", "restart"), [("7", 1), ("7", 0), ("8", 5), (None, 5)])
def test_other_jobs_and_other_steps_of_the_holders_job_are_locked_out(run, job, restart):
    hold(run, replace(ELSEWHERE, job="7", restart=1))
    with pytest.raises(RunLockedError, match=r"\(job 7\)"):
        start_attempt(run, replace(ME, job=job, restart=restart), {})


@pytest.mark.parametrize(("silent_for", "held"), [(0.0, True), (50.0, True), (70.0, False), (1e6, False)])
def test_remote_holder_is_replaced_after_a_minute_without_heartbeat(run, silent_for, held):
    hold(run, ELSEWHERE, silent_for)
    if held:
        with pytest.raises(RunLockedError):
            start_attempt(run, ME, {})
    else:
        assert start_attempt(run, ME, {}).number == 2


def test_heartbeat_timeout_is_a_parameter(run):
    hold(run, ELSEWHERE, silent_for=3.0)
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {}, timeout=5.0)
    assert start_attempt(run, ME, {}, timeout=2.0).number == 2


@pytest.mark.parametrize("event", ["stopped", "finished", "failed"])
def test_holder_with_a_terminal_event_is_replaced(run, event, sleeper):
    attempt = hold(run, holder_of(sleeper.pid))
    JsonlWriter(attempt.events).write({"event": "started"})
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {})
    JsonlWriter(attempt.events).write({"event": event})
    assert start_attempt(run, ME, {}).number == 2


def test_only_the_latest_attempt_locks_the_run(run, sleeper):
    hold(run, holder_of(sleeper.pid))
    hold(run, ELSEWHERE, silent_for=1e6)
    assert start_attempt(run, ME, {}).number == 3


def test_attempt_without_record_locks_the_run_for_a_few_seconds(run):
    run.attempt(1).path.mkdir(parents=True)
    with pytest.raises(RunLockedError, match="attempt 1 "):
        start_attempt(run, ME, {})
    past = run.attempt(1).path.stat().st_mtime - 20
    os.utime(run.attempt(1).path, (past, past))
    # The file that reads the file server's clock must not count as a heartbeat.
    assert start_attempt(run, ME, {}).number == 2


def test_unwritable_folder_raises_run_error(run):
    run.path.mkdir()
    run.attempts_root.write_text("a file in the way")
    with pytest.raises(RunError, match=r"attempts: .*File exists"):
        start_attempt(run, ME, {})


def test_full_disk_raises_run_error(run, monkeypatch):
    def no_space(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attempts, "write_text", no_space)
    with pytest.raises(RunError, match=r"run: .*no space left"):
        start_attempt(run, ME, {})


def test_lock_check_leaves_no_files(run):
    attempt = hold(run, ELSEWHERE)
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {})
    assert sorted(path.name for path in attempt.path.iterdir()) == ["attempt.json", "heartbeat"]


def test_is_superseded_by_a_later_attempt(run):
    first = start_attempt(run, ME, {})
    assert not is_superseded(run, first)
    run.attempt(2).path.mkdir()
    assert is_superseded(run, first)
    assert not is_superseded(run, run.attempt(2))


def test_find_rendezvous_returns_that_of_the_same_start(run):
    assert find_rendezvous(run, "mine") is None
    for number, token in ((1, "mine"), (2, "other")):
        run.attempt(number).path.mkdir(parents=True)
        write_text(run.attempt(number).rendezvous, json.dumps({"token": token, "attempt": number}))
    run.attempt(3).path.mkdir()
    assert find_rendezvous(run, "mine")["attempt"] == 1
    assert find_rendezvous(run, "other")["attempt"] == 2
    assert find_rendezvous(run, "none") is None


@pytest.mark.parametrize("before", ["new", "dead holder"])
def test_one_of_eight_simultaneous_starts_wins(ranks, tmp_path, before):
    number = 1
    if before == "dead holder":
        for round_ in range(12):
            hold(RunFolder(tmp_path / f"run-{round_}"), replace(ME, token="dead", born=ME.born - 1))
        number = 2
    answers = ranks("run/attempt_race_ranks.py", 8, str(tmp_path))
    for round_, results in enumerate(zip(*answers, strict=True)):
        assert [one for one in results if isinstance(one, int)] == [number], results
        assert all("attempt" in one for one in results if isinstance(one, str))
        assert len(RunFolder(tmp_path / f"run-{round_}").attempts()) == number
