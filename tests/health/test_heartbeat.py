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
from hsadml_dist.run.attempts import HEARTBEAT_TIMEOUT_SECONDS
from hsadml_dist.run.folder import RunFolder

HANG_SECONDS = 300
SEVERAL_INTERVALS = 0.1


@pytest.fixture
def attempt(tmp_path):
    folder = RunFolder(tmp_path).attempt(3)
    folder.rank_heartbeats.mkdir(parents=True)
    return folder


@pytest.fixture
def fast(monkeypatch):
    """Heartbeats every 20 ms."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "RANK_HEARTBEAT_SECONDS", 0.02)


def rank_heartbeat(rank, **changes):
    fields = {"rank": rank, "step": 7, "stage": "step", "waits": True, "doing": "m", "time": 1.5}
    return RankHeartbeat(**(fields | changes))


def wait_for(condition):
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_position_has_one_span_per_step_and_per_other_stage():
    recorder = PositionRecorder()
    assert recorder.position == RankPosition(step=0, stage="start", span=0, slow=True)
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
        recorder.enter_stage(step, stage)
        assert (recorder.position.step, recorder.position.stage) == (step, stage)
        seen.append((recorder.position.span, recorder.position.slow))
    first, second = [(1, True)] * 3, [(3, False)] * 2
    third = [(6, False), (6, False), (7, False), (8, False)]
    assert seen == [*first, (2, True), *second, (4, True), (4, True), (5, True), *third]


def test_rank_heartbeats_round_trip(attempt):
    written = [rank_heartbeat(0), rank_heartbeat(2, stage="data", waits=False, doing="ü")]
    for one in written:
        write_rank_heartbeat(attempt, one)
    statuses = read_peer_statuses(attempt, 4, own=0)
    assert [status.heartbeat for status in statuses] == [written[0], None, written[1], None]
    assert [status.rank for status in statuses] == [0, 1, 2, 3]
    assert sorted(os.listdir(attempt.rank_heartbeats)) == ["rank-0000", "rank-0002"]


def test_heartbeat_age_uses_the_file_servers_times_and_is_never_negative(attempt):
    for rank, time_ in [(0, 1000.0), (1, 990.0), (2, 1003.0)]:
        write_rank_heartbeat(attempt, rank_heartbeat(rank, time=5e9))
        os.utime(attempt.rank_heartbeat(rank), (time_, time_))
    assert [status.age for status in read_peer_statuses(attempt, 3, own=0)] == [0, 10, 0]
    attempt.rank_heartbeat(0).unlink()
    assert [status.age for status in read_peer_statuses(attempt, 3, own=0)] == [0, 13, 0]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rank": 1}', json.dumps({"rank": 1, "other": 2})])
def test_damaged_heartbeat_counts_as_missing(attempt, text):
    attempt.rank_heartbeat(0).write_text(text)
    assert read_peer_statuses(attempt, 1, own=0)[0].heartbeat is None


def test_peer_statuses_without_a_folder_have_no_heartbeats(tmp_path):
    statuses = read_peer_statuses(RunFolder(tmp_path).attempt(1), 2, own=0)
    assert [status.heartbeat for status in statuses] == [None, None]


def test_rank_heartbeat_describes_the_main_thread():
    here = RankHeartbeat.of(4, RankPosition(step=9, stage="save"))
    assert (here.rank, here.step, here.stage, here.waits) == (4, 9, "save", False)
    assert here.doing.endswith(", of")  # this call itself
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
        ("hsadml_dist.trainer", "train_step", False),
    ],
)
def test_rank_waits_in_collectives_and_in_the_backward_pass(module, function, waits):
    # The innermost frame must be the function itself, so another thread takes the heartbeat.
    namespace, found = {"__name__": module}, []
    exec(f"def {function}(done):\n    while not done: pass", namespace)
    done = []
    observer = threading.Timer(0.1, lambda: (found.append(RankHeartbeat.of(0, RankPosition())), done.append(True)))
    observer.start()
    namespace[function](done)
    observer.join()
    assert found[0].waits is waits
    assert found[0].doing == f"{module}, line 2, {function}"


def test_rank_heartbeat_writer_writes_at_once_and_until_closed(attempt, fast):
    recorder = PositionRecorder()
    writer = RankHeartbeatWriter(attempt, 1, recorder)
    assert read_peer_statuses(attempt, 2, own=1)[1].heartbeat.stage == "start"
    recorder.enter_stage(4, "vote")
    wait_for(lambda: read_peer_statuses(attempt, 2, own=1)[1].heartbeat.step == 4)
    writer.close()
    attempt.rank_heartbeat(1).unlink()
    time.sleep(SEVERAL_INTERVALS)
    assert not attempt.rank_heartbeat(1).exists()


def test_rank_heartbeat_writer_ignores_an_unwritable_folder(tmp_path):
    (tmp_path / "attempts").write_text("a file where a folder should be")
    RankHeartbeatWriter(RunFolder(tmp_path).attempt(1), 0, PositionRecorder()).close()


@pytest.fixture
def file(tmp_path, fast):
    path = tmp_path / "attempt" / "heartbeat"
    path.parent.mkdir()
    path.touch()
    return path


def test_heartbeats_come_far_more_often_than_their_timeout():
    assert 5 * HEARTBEAT_SECONDS < HEARTBEAT_TIMEOUT_SECONDS


def test_attempt_heartbeat_touches_its_file_until_closed(file):
    task = AttemptHeartbeat(file)
    for _ in range(3):
        os.utime(file, (1, 1))
        wait_for(lambda: file.stat().st_mtime > 1)
    task.close()
    os.utime(file, (1, 1))
    time.sleep(SEVERAL_INTERVALS)
    assert file.stat().st_mtime == 1
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_attempt_heartbeat_survives_an_outage_of_the_file_server(file):
    task = AttemptHeartbeat(file)
    file.unlink()
    file.parent.rename(file.parent.with_name("away"))
    time.sleep(SEVERAL_INTERVALS)
    file.parent.with_name("away").rename(file.parent)
    wait_for(file.exists)
    task.close()


def test_close_does_not_wait_for_the_next_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 2 * HANG_SECONDS)
    began = time.monotonic()
    AttemptHeartbeat(tmp_path / "heartbeat").close()
    assert time.monotonic() - began < HANG_SECONDS


def test_attempt_heartbeat_that_is_not_closed_keeps_no_process_alive(file):
    task = AttemptHeartbeat(file)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "heartbeat")
    task.close()
