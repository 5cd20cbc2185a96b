import json
import time

import pytest

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import RunLockedError
from hsadml_dist.run.attempts import current_holder, start_attempt
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import join_run

PEER = Topology(rank=1, world_size=2, local_rank=1, local_world_size=2)


def test_ranks_of_a_start_meet_in_one_attempt_and_the_next_start_in_the_next(ranks, tmp_path):
    first = ranks("run/rendezvous_ranks.py", 3, f"{tmp_path} one")
    second = ranks("run/rendezvous_ranks.py", 3, f"{tmp_path} two")
    assert first == [(1, 6.0, "one")] * 3
    assert second == [(2, 6.0, "two")] * 3
    attempt = RunFolder(tmp_path).attempt(2)
    assert json.loads(attempt.record.read_text())["world_size"] == 3
    published = json.loads(attempt.rendezvous.read_text())
    assert published == {"token": "two", "attempt": 2, "host": "127.0.0.1", "port": published["port"]}


def test_a_start_on_a_held_run_ends_on_every_rank(ranks, tmp_path):
    start_attempt(RunFolder(tmp_path), current_holder("holder"), {})
    said = ranks("run/rendezvous_ranks.py", 2, f"{tmp_path} late")
    assert said[0].startswith("RunLockedError: ") and "still written by process" in said[0]
    assert said[1].startswith("RunLockedError: ") and "rank 0 of this start did not appear within 2 s" in said[1]


def test_a_lone_rank_needs_no_group(tmp_path):
    context = join_run(RunFolder(tmp_path), Topology(), {"threads": 1}, 5, lambda: False)
    assert isinstance(context.comm, SoloComm)
    assert context.attempt.number == 1
    assert not context.attempt.rendezvous.exists()
    assert json.loads(context.attempt.record.read_text())["threads"] == 1


def test_a_rank_that_is_told_to_stop_while_it_waits_leaves_soon_and_not_as_resumable(tmp_path, monkeypatch):
    monkeypatch.setenv("HSADML_LAUNCH", "nobody")
    began = time.monotonic()
    with pytest.raises(RunLockedError, match=r"rank 0 of this start did not appear within [45] s"):
        join_run(RunFolder(tmp_path), PEER, {}, 60, lambda: time.monotonic() > began + 0.2)
    assert time.monotonic() - began < 6


def test_a_rank_whose_rank_0_never_comes_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HSADML_LAUNCH", "nobody")
    with pytest.raises(RunLockedError, match="did not appear within 1 s"):
        join_run(RunFolder(tmp_path), PEER, {}, 1, lambda: False)
