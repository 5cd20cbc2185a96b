import time

from hsadml_dist.run.events import EventLog
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rows import read_jsonl


def test_event_rows_have_what_readers_rely_on(tmp_path):
    attempt = RunFolder(tmp_path).attempt(3)
    before = time.time()
    events = EventLog(attempt, job="77", restart=2)
    events.write("started", 0, world_size=4)
    events.write("stopped", 12)
    first, second = read_jsonl(attempt.events)
    assert before <= first.pop("time") <= second.pop("time") <= time.time()
    common = {"attempt": 3, "job": "77", "restart": 2}
    assert first == {"event": "started", "step": 0, "world_size": 4, **common}
    assert second == {"event": "stopped", "step": 12, **common}


def test_outside_of_slurm_there_is_no_job(tmp_path):
    attempt = RunFolder(tmp_path).attempt(1)
    EventLog(attempt, job=None, restart=0).write("finished", 5)
    [row] = read_jsonl(attempt.events)
    assert (row["job"], row["restart"]) == (None, 0)
