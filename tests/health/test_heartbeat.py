import json
import os
import threading
import time

import pytest

from hsadml_dist.health import heartbeat
from hsadml_dist.health.heartbeat import (
    HEARTBEAT_SECONDS,
    AttemptHeartbeat,
    PositionRecorder,
    RankHeartbeat,
    RankHeartbeatWriter,
    RankPosition,
    read_peer_statuses,
    write_rank_heartbeat,
)
from hsadml_dist.run.folder import RunFolder


@pytest.fixture
def attempt(tmp_path):
    folder = RunFolder(tmp_path).attempt(3)
    folder.rank_heartbeats.mkdir(parents=True)
    return folder


def sign(rank, **changes):
    return RankHeartbeat(
        **{"rank": rank, "step": 7, "stage": "step", "waits": True, "doing": "m", "time": 1.5} | changes
    )


def test_marks_of_a_training_that_goes_on():
    where = PositionRecorder()
    assert where.mark == RankPosition(step=0, stage="start", span=0, slow=True)
    seen = []
    for step, stage in [
        (5, "data"),
        (5, "vote"),
        (5, "step"),
        (5, "save"),
        (6, "data"),
        (6, "step"),
        (6, "save"),
        (6, "save"),
        (6, "evaluate"),
        (7, "data"),
        (7, "step"),
        (8, "data"),
        (9, "data"),
    ]:
        where.enter_stage(step, stage)
        assert (where.mark.step, where.mark.stage) == (step, stage)
        seen.append((where.mark.span, where.mark.slow))
    first, second = [(1, True)] * 3, [(3, False)] * 2
    third = [(6, False), (6, False), (7, False), (8, False)]
    assert seen == [*first, (2, True), *second, (4, True), (4, True), (5, True), *third]


def test_what_was_written_is_read(attempt):
    signs = [sign(0), sign(2, stage="data", waits=False, doing="ü")]
    for one in signs:
        write_rank_heartbeat(attempt, one)
    seen = read_peer_statuses(attempt, 4, own=0)
    assert [one.sign for one in seen] == [signs[0], None, signs[1], None]
    assert [one.rank for one in seen] == [0, 1, 2, 3]
    assert sorted(os.listdir(attempt.rank_heartbeats)) == ["rank-0000", "rank-0002"]


def test_silence_counts_from_the_file_servers_times_and_never_below_zero(attempt):
    for rank, time_ in [(0, 1000.0), (1, 990.0), (2, 1003.0)]:
        write_rank_heartbeat(attempt, sign(rank, time=5e9))
        os.utime(attempt.rank_heartbeat(rank), (time_, time_))
    assert [one.silent for one in read_peer_statuses(attempt, 3, own=0)] == [0, 10, 0]
    attempt.rank_heartbeat(0).unlink()
    assert [one.silent for one in read_peer_statuses(attempt, 3, own=0)] == [0, 13, 0]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rank": 1}', json.dumps({"rank": 1, "other": 2})])
def test_a_damaged_sign_is_no_sign(attempt, text):
    attempt.rank_heartbeat(0).write_text(text)
    assert read_peer_statuses(attempt, 1, own=0)[0].sign is None


def test_no_folder_no_signs(tmp_path):
    assert [one.sign for one in read_peer_statuses(RunFolder(tmp_path).attempt(1), 2, own=0)] == [None, None]


def test_a_sign_tells_where_the_main_thread_is():
    here = RankHeartbeat.of(4, RankPosition(step=9, stage="save"))
    assert (here.rank, here.step, here.stage, here.waits) == (4, 9, "save", False)
    assert here.doing.endswith(", of")  # this very call
    assert abs(here.time - time.time()) < 60
    other = []
    thread = threading.Thread(target=lambda: other.append(RankHeartbeat.of(4, RankPosition())))
    thread.start()
    thread.join()
    assert "thread" in other[0].doing, "the main thread waits in threading.join"


@pytest.mark.parametrize(
    ("module", "function", "waits"),
    [
        ("torch.distributed.distributed_c10d", "all_reduce", True),
        ("torch.nn.parallel.distributed", "_sync_buffers", True),
        ("torch.autograd.graph", "_engine_run_backward", True),
        ("torch.nn.parallel.replicate", "all_reduce", False),
        ("hsadml_dist.train", "train_step", False),
    ],
)
def test_in_collectives_and_in_ddps_backward_pass_a_rank_waits(module, function, waits):
    # The innermost place must be the function itself, so the look is taken from another thread.
    namespace, found = {"__name__": module}, []
    exec(f"def {function}(done):\n    while not done: pass", namespace)
    done = []
    watcher = threading.Timer(0.1, lambda: (found.append(RankHeartbeat.of(0, RankPosition())), done.append(True)))
    watcher.start()
    namespace[function](done)
    watcher.join()
    assert found[0].waits is waits
    assert found[0].doing == f"{module}, line 2, {function}"


def test_signs_come_at_once_and_until_closed(attempt, monkeypatch):
    monkeypatch.setattr(heartbeat, "RANK_HEARTBEAT_SECONDS", 0.02)
    where = PositionRecorder()
    signs = RankHeartbeatWriter(attempt, 1, where)
    assert read_peer_statuses(attempt, 2, own=1)[1].sign.stage == "start"
    where.enter_stage(4, "vote")
    deadline = time.monotonic() + 5
    while read_peer_statuses(attempt, 2, own=1)[1].sign.step != 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    signs.close()
    attempt.rank_heartbeat(1).unlink()
    time.sleep(0.1)
    assert not attempt.rank_heartbeat(1).exists()


def test_a_run_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "attempts").write_text("a file where a folder should be")
    RankHeartbeatWriter(RunFolder(tmp_path).attempt(1), 0, PositionRecorder()).close()


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def age(path):
    return time.time() - path.stat().st_mtime


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / "attempt" / "heartbeat"
    path.parent.mkdir()
    path.touch()
    return path


def test_beats_come_far_more_often_than_silence_is_taken_for_death():
    from hsadml_dist.run.attempts import HEARTBEAT_TIMEOUT_SECONDS

    assert 5 * HEARTBEAT_SECONDS < HEARTBEAT_TIMEOUT_SECONDS


def test_beats_come_until_closed(file):
    beats = AttemptHeartbeat(file)
    for _ in range(3):
        os.utime(file, (1, 1))
        wait_for(lambda: age(file) < 60)
    beats.close()
    os.utime(file, (1, 1))
    time.sleep(0.1)
    assert file.stat().st_mtime == 1
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_file_server_that_is_away_for_a_moment_does_not_end_the_beats(file):
    beats = AttemptHeartbeat(file)
    file.unlink()
    file.parent.rename(file.parent.with_name("away"))
    time.sleep(0.1)
    file.parent.with_name("away").rename(file.parent)
    wait_for(file.exists)
    beats.close()


def test_close_does_not_wait_for_the_next_beat(tmp_path):
    beats = AttemptHeartbeat(tmp_path / "heartbeat")
    began = time.monotonic()
    beats.close()
    assert time.monotonic() - began < 1


def test_a_forgotten_heartbeat_keeps_no_process_alive(file):
    beats = AttemptHeartbeat(file)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "heartbeat")
    beats.close()
