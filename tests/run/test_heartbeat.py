import os
import threading
import time

import pytest

from hsadml_dist.run import heartbeat
from hsadml_dist.run.heartbeat import HEARTBEAT_SECONDS, AttemptHeartbeat


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
