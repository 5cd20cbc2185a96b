import pytest
import torch.distributed as dist

from hsadml_dist.errors import DataError, ExitCode, PeerLostError, RunLockedError
from hsadml_dist.health.hang_report import (
    SILENT_SECONDS,
    choose_reporter,
    describe_peer,
    find_hanging_ranks,
    lost_peer_reason,
    raise_on_lost_peer,
)
from hsadml_dist.health.heartbeat import STAGES, PeerStatus, RankHeartbeat
from hsadml_dist.run.folder import RunFolder


def seen(rank, step=7, stage="step", *, waits=True, silent=0.2, sign=True):
    found = (
        RankHeartbeat(rank=rank, step=step, stage=stage, waits=waits, doing="m, line 1, f", time=1.0) if sign else None
    )
    return PeerStatus(rank=rank, sign=found, silent=silent)


def named(*ranks):
    return [one.rank for one in find_hanging_ranks(ranks)]


def test_a_silent_rank_is_named_whatever_the_others_do():
    assert named(seen(0), seen(1, silent=30), seen(2, waits=False)) == [1]
    assert named(seen(0), seen(1, silent=SILENT_SECONDS)) == [0, 1]


def test_a_rank_without_any_sign_is_named():
    assert named(seen(0, waits=False), seen(1, sign=False)) == [1]


def test_of_ranks_at_the_same_place_the_ones_that_do_not_wait():
    assert named(seen(0), seen(1, waits=False), seen(2)) == [1]
    assert named(seen(0), seen(1, waits=False), seen(2, waits=False)) == [1, 2]


def test_a_rank_in_an_earlier_stage_is_behind():
    assert named(seen(0, stage="vote"), seen(1, stage="data", waits=False)) == [1]
    assert named(seen(0, stage="vote", waits=False), seen(1, stage="data", waits=False)) == [1]


@pytest.mark.parametrize("early", range(len(STAGES) - 1))
def test_the_order_of_the_stages_is_that_of_a_step(early):
    first, later = STAGES[early], STAGES[early + 1]
    assert named(seen(0, stage=later), seen(1, stage=first)) == [1]
    assert named(seen(0, step=8, stage=first), seen(1, step=7, stage=later)) == [1]


def test_ranks_that_all_wait_at_one_place_are_all_named():
    assert named(seen(0), seen(1), seen(2)) == [0, 1, 2]


def test_one_rank_alone_is_named():
    assert named(seen(0, waits=False)) == [0]
    assert named(seen(0, sign=False)) == [0]


def test_the_first_rank_that_gives_signs_reports():
    assert choose_reporter([seen(0), seen(1, silent=30)]) == 0
    assert choose_reporter([seen(0, silent=30), seen(1), seen(2)]) == 1
    assert choose_reporter([seen(0, sign=False), seen(1, silent=30), seen(2)]) == 2
    assert choose_reporter([seen(0, sign=False)]) == 0


def test_words():
    assert describe_peer(seen(1, sign=False)) == "rank 1 has given no sign of life"
    assert (
        describe_peer(seen(1, silent=11.7))
        == "rank 1 has given no sign of life for 12 s; its last was in stage step of step 7"
    )
    assert describe_peer(seen(1, stage="data", waits=False)) == "rank 1 is busy in stage data of step 7 (m, line 1, f)"
    assert describe_peer(seen(0)) == "rank 0 waits for its peers in stage step of step 7 (m, line 1, f)"


# As gloo and the store said them of peers that were killed, stopped or had left, with torch 2.13.
TCP = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"
CLOSED = RuntimeError(f"{TCP}pair.cc:553] Connection closed by peer [127.0.0.1]:24765. This is typically caused by ...")
RESET = RuntimeError(f"{TCP}pair.cc:554] Read error [127.0.0.1]:3: Connection reset by peer")
SILENT = RuntimeError(f"{TCP}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete")
SILENT_SEND = RuntimeError(f"{TCP}unbound_buffer.cc:129] Timed out waiting 9ms for send operation to complete")
STORE_GONE = dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the server crash?")
STORE_RESET = dist.DistNetworkError("Connection reset by peer")
STORE_WAITS = dist.DistStoreError("wait timeout after 3000ms, keys: /0//cpu//0/1")
NCCL = dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or network error")


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        (CLOSED, "connection closed"),
        (RESET, "connection reset"),
        (SILENT, "timed out"),
        (SILENT_SEND, "timed out"),
        (STORE_GONE, "connection was likely closed"),
        (STORE_RESET, "connection reset"),
        (STORE_WAITS, "timeout"),
        (NCCL, "the process group failed"),
    ],
)
def test_what_collectives_say_of_a_lost_peer(fault, how):
    assert lost_peer_reason(fault) == how


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("DataLoader timed out after 3 seconds"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        TimeoutError("timed out"),
        ConnectionResetError("Connection reset by peer"),
        KeyError("gloo"),
    ],
)
def test_other_faults_stay_what_they_are(fault):
    assert lost_peer_reason(fault) is None


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.attempt(1).path.mkdir(parents=True)
    return folder


def fail(fault, run, attempt, **more):
    with raise_on_lost_peer(run, attempt, lambda: "at step 7 (stage vote)", **more):
        raise fault


def test_one_line_says_where(run):
    with pytest.raises(PeerLostError) as caught:
        fail(CLOSED, run, run.attempt(1))
    assert str(caught.value) == "another rank is gone or hangs, noticed at step 7 (stage vote): connection closed"
    assert caught.value.exit_code is ExitCode.INTERNAL_ERROR
    assert caught.value.__cause__ is CLOSED


def test_a_rank_that_was_left_behind_says_so(run):
    run.attempt(2).path.mkdir()
    run.attempt(3).path.mkdir()
    with pytest.raises(RunLockedError, match=r"run: attempt 3 has started; attempt 1 writes nothing more$"):
        fail(SILENT, run, run.attempt(1))


def test_before_there_is_an_attempt(run):
    with pytest.raises(PeerLostError):
        fail(STORE_WAITS, run, None)


def test_the_watchdog_may_speak_first(run):
    called = []
    with pytest.raises(PeerLostError):
        fail(CLOSED, run, run.attempt(1), wait_for_report=lambda: called.append(True))
    assert called == [True]


@pytest.mark.parametrize("fault", [DataError("shard-3 is damaged"), RuntimeError("other"), KeyboardInterrupt()])
def test_all_else_passes(run, fault):
    with pytest.raises(type(fault)) as caught:
        fail(fault, run, run.attempt(1), wait_for_report=lambda: pytest.fail("nothing to wait for"))
    assert caught.value is fault
