import pytest
import torch.distributed as dist

from hsadml_dist.errors import DataError, ExitCode, PeerLostError, RunLockedError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.stop.peers import lost_peer_reason, raise_on_lost_peer

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
