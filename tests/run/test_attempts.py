import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hsadml_dist.errors import ExitCode, RunError, RunLockedError
from hsadml_dist.run import attempts
from hsadml_dist.run.attempts import current_holder, find_rendezvous, is_superseded, start_attempt
from hsadml_dist.run.folder import RunFolder, replace_text
from hsadml_dist.run.jsonl import JsonlWriter

ME = current_holder("me", {})
ELSEWHERE = replace(ME, token="other", host="elsewhere", boot="another boot", pid=1, born=1)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def hold(run, holder, silent_for=0.0):
    """Let ``holder`` have taken an attempt; its last sign of life is as old as said."""
    attempt = run.attempt(len(run.attempts()) + 1)
    attempt.path.mkdir(parents=True)
    replace_text(attempt.record, json.dumps({"attempt": attempt.number, "started": 0.0, **asdict(holder)}))
    attempt.heartbeat.touch()
    beat = time.time() - silent_for
    os.utime(attempt.heartbeat, (beat, beat))
    return attempt


@pytest.fixture
def sleeper():
    """A live process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.stdin.close()
    process.wait()


def stat_of(pid):
    """The fields of a process from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def holder_of(pid):
    return replace(ME, token="other", pid=pid, born=int(stat_of(pid)[19]))


def test_the_first_attempt_has_number_1_and_says_who_took_it(run):
    attempt = start_attempt(run, ME, {"world_size": 4})
    record = json.loads(attempt.record.read_text())
    assert attempt.number == record["attempt"] == 1
    assert record["world_size"] == 4
    assert {name: record[name] for name in asdict(ME)} == asdict(ME)
    assert abs(record["started"] - time.time()) < 60
    assert attempt.heartbeat.exists()


def test_this_process_is_described_by_what_outlives_it():
    me = current_holder("t", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"})
    assert (me.token, me.host, me.pid, me.job, me.restart) == ("t", socket.gethostname(), os.getpid(), "7", 2)
    assert me.born > 0
    assert (ME.job, ME.restart) == (None, 0)


def test_a_live_holder_keeps_the_run(run, sleeper):
    hold(run, holder_of(sleeper.pid))
    with pytest.raises(RunLockedError, match=f"attempt 1 is still written by process {sleeper.pid} on ") as caught:
        start_attempt(run, ME, {})
    assert caught.value.exit_code == ExitCode.RUN_LOCKED == 75
    assert len(run.attempts()) == 1


def test_a_dead_holder_on_this_host_loses_it_at_once(run, sleeper):
    holder = holder_of(sleeper.pid)
    hold(run, holder)
    sleeper.kill()
    sleeper.wait()
    assert start_attempt(run, ME, {}).number == 2


def test_a_zombie_is_dead(run, sleeper):
    holder = holder_of(sleeper.pid)
    hold(run, holder)
    sleeper.kill()
    deadline = time.monotonic() + 10
    while stat_of(sleeper.pid)[0] != "Z":
        assert time.monotonic() < deadline
    assert start_attempt(run, ME, {}).number == 2


def test_a_process_id_that_was_given_anew_is_somebody_else(run, sleeper):
    holder = holder_of(sleeper.pid)
    hold(run, replace(holder, born=holder.born - 1))
    assert start_attempt(run, ME, {}).number == 2


def test_a_process_id_is_not_compared_across_boots_or_hosts(run):
    hold(run, replace(ME, token="other", boot="another boot", pid=2**22 + 1))
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {})


def test_the_same_job_with_a_lower_restart_count_has_ended(run):
    hold(run, replace(ELSEWHERE, job="7", restart=0))
    me = replace(ME, job="7", restart=1)
    assert start_attempt(run, me, {}).number == 2


@pytest.mark.parametrize(("job", "restart"), [("7", 1), ("7", 0), ("8", 5), (None, 5)])
def test_no_other_job_and_no_other_step_of_this_one_may_take_over(run, job, restart):
    hold(run, replace(ELSEWHERE, job="7", restart=1))
    with pytest.raises(RunLockedError, match=r"\(job 7\)"):
        start_attempt(run, replace(ME, job=job, restart=restart), {})


@pytest.mark.parametrize(("silent_for", "held"), [(0.0, True), (50.0, True), (70.0, False), (1e6, False)])
def test_silence_of_a_minute_counts_as_death_elsewhere(run, silent_for, held):
    hold(run, ELSEWHERE, silent_for)
    if held:
        with pytest.raises(RunLockedError):
            start_attempt(run, ME, {})
    else:
        assert start_attempt(run, ME, {}).number == 2


def test_how_long_a_silence_may_be_is_the_callers_choice(run):
    hold(run, ELSEWHERE, silent_for=3.0)
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {}, silence=5.0)
    assert start_attempt(run, ME, {}, silence=2.0).number == 2


@pytest.mark.parametrize("event", ["stopped", "finished", "failed"])
def test_whoever_said_its_last_word_holds_nothing(run, event, sleeper):
    attempt = hold(run, holder_of(sleeper.pid))
    JsonlWriter(attempt.events).write({"event": "started"})
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {})
    JsonlWriter(attempt.events).write({"event": event})
    assert start_attempt(run, ME, {}).number == 2


def test_only_the_latest_attempt_is_asked(run, sleeper):
    hold(run, holder_of(sleeper.pid))
    hold(run, ELSEWHERE, silent_for=1e6)
    assert start_attempt(run, ME, {}).number == 3


def test_an_attempt_that_has_not_said_who_it_is_has_a_few_seconds_for_it(run):
    run.attempt(1).path.mkdir(parents=True)
    with pytest.raises(RunLockedError, match="attempt 1 is just starting"):
        start_attempt(run, ME, {})
    past = time.time() - 20
    os.utime(run.attempt(1).path, (past, past))
    # The look at the file server's clock is a file of its own and must not count as a sign of life.
    assert start_attempt(run, ME, {}).number == 2


def test_a_folder_that_cannot_be_written_is_one_clear_line(run):
    run.path.mkdir()
    run.attempts_root.write_text("a file stands here")
    with pytest.raises(RunError, match="attempts: no attempt can be started here: File exists"):
        start_attempt(run, ME, {})


def test_a_disk_without_room_is_one_clear_line(run, monkeypatch):
    def no_room(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attempts, "replace_text", no_room)
    with pytest.raises(RunError, match="run: no attempt can be started here: no space left"):
        start_attempt(run, ME, {})


def test_looking_for_a_holder_leaves_nothing_behind(run):
    attempt = hold(run, ELSEWHERE)
    with pytest.raises(RunLockedError):
        start_attempt(run, ME, {})
    assert sorted(path.name for path in attempt.path.iterdir()) == ["attempt.json", "heartbeat"]


def test_a_later_attempt_supersedes(run):
    first = start_attempt(run, ME, {})
    assert not is_superseded(run, first)
    run.attempt(2).path.mkdir()
    assert is_superseded(run, first)
    assert not is_superseded(run, run.attempt(2))


def test_peers_find_the_attempt_of_their_own_start(run):
    assert find_rendezvous(run, "mine") is None
    for number, token in ((1, "mine"), (2, "other")):
        run.attempt(number).path.mkdir(parents=True)
        replace_text(run.attempt(number).rendezvous, json.dumps({"token": token, "attempt": number}))
    run.attempt(3).path.mkdir()
    assert find_rendezvous(run, "mine")["attempt"] == 1
    assert find_rendezvous(run, "other")["attempt"] == 2
    assert find_rendezvous(run, "none") is None


@pytest.mark.parametrize("before", ["new", "dead holder"])
def test_of_eight_that_come_at_once_one_holds(ranks, tmp_path, before):
    number = 1
    if before == "dead holder":
        for round_ in range(12):
            hold(RunFolder(tmp_path / f"run-{round_}"), replace(ME, token="dead", born=ME.born - 1))
        number = 2
    answers = ranks("run/attempt_race_ranks.py", 8, str(tmp_path))
    for round_, said in enumerate(zip(*answers, strict=True)):
        assert [one for one in said if isinstance(one, int)] == [number], said
        assert all("attempt" in one for one in said if isinstance(one, str))
        assert len(RunFolder(tmp_path / f"run-{round_}").attempts()) == number
