import os
import signal
import subprocess
import sys

import pytest

from hsadml_dist.preemption import signals
from hsadml_dist.preemption.signals import STOP_SIGNALS, StopSignal, job_end_time
from hsadml_dist.run.history import StopReason


@pytest.fixture
def stop_signal():
    """An installed stop signal; the previous handlers are restored afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop_signal = StopSignal()
    stop_signal.install()
    yield stop_signal
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [1.7e9]
    monkeypatch.setattr(signals.time, "time", lambda: now[0])
    return now


@pytest.mark.parametrize("reason", [StopReason.SIGTERM, StopReason.SIGUSR2, StopReason.SIGINT])
def test_signal_sets_the_stop_signal_and_its_reason(stop_signal, reason):
    assert not stop_signal.is_set
    os.kill(os.getpid(), getattr(signal, reason.name))
    assert stop_signal.is_set
    assert stop_signal.reason is reason


def test_every_stop_signal_has_a_reason():
    assert {signal.Signals(number).name for number in STOP_SIGNALS} <= {reason.name for reason in StopReason}


def test_first_reason_is_kept(stop_signal):
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTERM)
    stop_signal.trigger(StopReason.REQUESTED)
    assert stop_signal.reason is StopReason.SIGUSR2


def test_signal_does_not_interrupt_a_system_call(stop_signal):
    read, write = os.pipe()
    code = f"import os, time; os.kill(os.getppid(), 15); time.sleep(0.2); os.write({write}, b'x')"
    child = subprocess.Popen([sys.executable, "-c", code], pass_fds=[write])
    assert os.read(read, 1) == b"x", "the read continued after the signal"
    child.wait()
    os.close(read)
    os.close(write)
    assert stop_signal.reason is StopReason.SIGTERM


def test_deadline_sets_the_stop_signal_at_the_lead_time(clock):
    stop_signal = StopSignal()
    stop_signal.set_deadline(clock[0] + 100, lead_seconds=60)
    clock[0] += 39.9
    assert not stop_signal.is_set
    clock[0] += 0.1
    assert stop_signal.is_set
    assert stop_signal.reason is StopReason.END_TIME


def test_no_deadline_never_sets_the_stop_signal(clock):
    stop_signal = StopSignal()
    stop_signal.set_deadline(None, lead_seconds=60)
    clock[0] += 1e9
    assert not stop_signal.is_set
    assert stop_signal.reason is None


def test_signal_before_the_deadline_is_the_reason(clock):
    stop_signal = StopSignal()
    stop_signal.trigger(StopReason.SIGTERM)
    stop_signal.set_deadline(clock[0] - 10, lead_seconds=60)
    assert stop_signal.is_set
    assert stop_signal.reason is StopReason.SIGTERM


@pytest.mark.parametrize(
    ("environ", "end"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1700000000"}, 1.7e9),
        ({"SLURM_JOB_END_TIME": ""}, None),
        ({"SLURM_JOB_END_TIME": "0"}, None),
        ({"SLURM_JOB_END_TIME": "Unknown"}, None),
        ({"SLURM_JOB_END_TIME": "4294967295"}, 4294967295.0),
    ],
)
def test_job_end_time_is_read_from_slurms_environment(environ, end):
    assert job_end_time(environ) == end
