import json
import stat

import pytest
from torch.distributed import HashStore

from hsadml_dist.distributed.comm import FakeComm, SoloComm
from hsadml_dist.distributed.rank_store import SealedStore
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import RunError, RunLockedError
from hsadml_dist.run import rendezvous
from hsadml_dist.run.attempts import current_holder, start_attempt
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import check_peers, join_run

SCRIPT = "run/rendezvous_ranks.py"
PEER = Topology(rank=1, world_size=2, local_rank=1, local_world_size=2)


def test_ranks_of_one_start_join_one_attempt(ranks, tmp_path):
    first = ranks(SCRIPT, 3, f"{tmp_path} one 60")
    second = ranks(SCRIPT, 3, f"{tmp_path} two 60")
    assert first == [(1, 6.0, "one")] * 3
    assert second == [(2, 6.0, "two")] * 3
    attempt = RunFolder(tmp_path).attempt(2)
    assert json.loads(attempt.record.read_text())["world_size"] == 3
    published = json.loads(attempt.rendezvous.read_text())
    assert (published["token"], published["attempt"], published["host"]) == ("two", 2, "127.0.0.1")
    assert len(bytes.fromhex(published["secret"])) == 32
    assert stat.S_IMODE(attempt.rendezvous.stat().st_mode) == 0o600


def test_rendezvous_that_others_can_write_is_refused(tmp_path, clock):
    attempt = start_attempt(RunFolder(tmp_path), current_holder("holder"), {})
    attempt.rendezvous.write_text(json.dumps({"token": "nobody"}))
    attempt.rendezvous.chmod(0o666)
    with pytest.raises(RunError):
        join_run(RunFolder(tmp_path), PEER, {}, 60, lambda: False)


def test_stranger_in_the_group_is_refused(tmp_path):
    class Hijacked(FakeComm):
        def all_gather_json(self, value):
            return [value, "another process"]

    store = SealedStore(HashStore(), b"secret")
    store.set("peer 1", "the peer")
    with pytest.raises(RunError):
        check_peers(store, Hijacked(0, 2))


def test_locked_run_is_refused_on_every_rank(ranks, tmp_path):
    start_attempt(RunFolder(tmp_path), current_holder("holder"), {})
    assert ranks(SCRIPT, 2, f"{tmp_path} late 1") == ["RunLockedError"] * 2
    assert [attempt.number for attempt in RunFolder(tmp_path).attempts()] == [1]


def test_single_rank_needs_no_group(tmp_path):
    context = join_run(RunFolder(tmp_path), Topology(), {"threads": 1}, 5, lambda: False)
    assert isinstance(context.comm, SoloComm)
    assert context.attempt.number == 1
    assert not context.attempt.rendezvous.exists()
    assert json.loads(context.attempt.record.read_text())["threads"] == 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the waiting moves."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(rendezvous, "time", clock)
    monkeypatch.setenv("HSADML_LAUNCH", "nobody")
    return clock


def test_rank_asked_to_stop_waits_only_the_grace_for_rank_0(tmp_path, clock):
    with pytest.raises(RunLockedError):
        join_run(RunFolder(tmp_path), PEER, {}, 60, lambda: clock.now > 10)
    assert clock.now == pytest.approx(10 + rendezvous.GRACE_SECONDS, abs=0.2)


def test_rank_waits_the_time_out_for_rank_0(tmp_path, clock):
    with pytest.raises(RunLockedError, match="60 s"):
        join_run(RunFolder(tmp_path), PEER, {}, 60, lambda: False)
    assert clock.now == pytest.approx(60, abs=0.2)
