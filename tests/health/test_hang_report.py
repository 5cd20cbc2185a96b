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


def peer(rank, step=7, stage="step", *, waits=True, age=0.2):
    heartbeat = RankHeartbeat(rank=rank, step=step, stage=stage, waits=waits, doing="m, line 1, f", time=1.0)
    return PeerStatus(rank=rank, heartbeat=heartbeat, age=age)


def missing(rank):
    return PeerStatus(rank=rank, heartbeat=None, age=0.0)


def hanging(*ranks):
    return [one.rank for one in find_hanging_ranks(ranks)]


def test_hanging_ranks_are_the_silent_ones():
    assert hanging(peer(0), peer(1, age=30), peer(2, waits=False)) == [1]
    assert hanging(peer(0), peer(1, age=SILENT_SECONDS)) == [0, 1]


def test_hanging_ranks_include_one_without_heartbeat():
    assert hanging(peer(0, waits=False), missing(1)) == [1]


def test_hanging_ranks_at_the_same_position_are_those_that_do_not_wait():
    assert hanging(peer(0), peer(1, waits=False), peer(2)) == [1]
    assert hanging(peer(0), peer(1, waits=False), peer(2, waits=False)) == [1, 2]


def test_hanging_rank_is_the_one_in_an_earlier_stage():
    assert hanging(peer(0, stage="vote"), peer(1, stage="data", waits=False)) == [1]
    assert hanging(peer(0, stage="vote", waits=False), peer(1, stage="data", waits=False)) == [1]


@pytest.mark.parametrize("early", range(len(STAGES) - 1))
def test_hanging_rank_is_the_one_furthest_behind_by_step_and_stage(early):
    first, later = STAGES[early], STAGES[early + 1]
    assert hanging(peer(0, stage=later), peer(1, stage=first)) == [1]
    assert hanging(peer(0, step=8, stage=first), peer(1, step=7, stage=later)) == [1]


def test_hanging_ranks_are_all_if_all_wait_at_the_same_position():
    assert hanging(peer(0), peer(1), peer(2)) == [0, 1, 2]


def test_hanging_rank_of_a_single_process():
    assert hanging(peer(0, waits=False)) == [0]
    assert hanging(missing(0)) == [0]


def test_reporter_is_the_first_rank_with_a_current_heartbeat():
    assert choose_reporter([peer(0), peer(1, age=30)]) == 0
    assert choose_reporter([peer(0, age=30), peer(1), peer(2)]) == 1
    assert choose_reporter([missing(0), peer(1, age=30), peer(2)]) == 2
    assert choose_reporter([missing(0)]) == 0


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        (missing(1), ["rank 1"]),
        (peer(1, age=11.7), ["rank 1", "12 s", "stage step", "step 7"]),
        (peer(1, stage="data", waits=False), ["rank 1", "busy", "stage data", "step 7", "m, line 1, f"]),
        (peer(0), ["rank 0", "waits", "stage step", "step 7", "m, line 1, f"]),
    ],
)
def test_description_of_a_peer_has_the_facts(status, facts):
    assert all(fact in describe_peer(status) for fact in facts)


# Messages of gloo and the store about peers that were killed, suspended or had exited, with torch 2.13.
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
    ("fault", "reason"),
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
def test_lost_peer_is_recognised_from_the_error_of_a_collective(fault, reason):
    assert lost_peer_reason(fault) == reason


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
def test_other_errors_are_not_taken_for_a_lost_peer(fault):
    assert lost_peer_reason(fault) is None


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.attempt(1).path.mkdir(parents=True)
    return folder


def fail(fault, run, attempt, **options):
    with raise_on_lost_peer(run, attempt, lambda: "at step 7 (stage vote)", **options):
        raise fault


def test_lost_peer_error_names_position_and_reason(run):
    with pytest.raises(PeerLostError) as caught:
        fail(CLOSED, run, run.attempt(1))
    assert "at step 7 (stage vote)" in str(caught.value)
    assert "connection closed" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.INTERNAL_ERROR
    assert caught.value.__cause__ is CLOSED


def test_lost_peer_after_a_later_attempt_started_is_a_locked_run(run):
    run.attempt(2).path.mkdir()
    run.attempt(3).path.mkdir()
    with pytest.raises(RunLockedError, match=r"attempt 3.*attempt 1"):
        fail(SILENT, run, run.attempt(1))


def test_lost_peer_before_there_is_an_attempt(run):
    with pytest.raises(PeerLostError):
        fail(STORE_WAITS, run, None)


def test_lost_peer_waits_for_the_watchdogs_report(run):
    called = []
    with pytest.raises(PeerLostError):
        fail(CLOSED, run, run.attempt(1), wait_for_report=lambda: called.append(True))
    assert called == [True]


@pytest.mark.parametrize("fault", [DataError("shard-3 is damaged"), RuntimeError("other"), KeyboardInterrupt()])
def test_other_errors_pass_unchanged(run, fault):
    with pytest.raises(type(fault)) as caught:
        fail(fault, run, run.attempt(1), wait_for_report=lambda: pytest.fail("nothing to wait for"))
    assert caught.value is fault
