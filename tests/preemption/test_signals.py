import os
import signal
import subprocess
import sys
import time

import pytest

from hsadml_dist.preemption.signals import STOP_SIGNALS, StopSignal, job_end_time


@pytest.fixture
def notice():
    """A listening notice; the handlers of before come back afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    notice = StopSignal()
    notice.install()
    yield notice
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGINT"])
def test_a_signal_is_remembered_and_does_nothing_else(notice, name):
    assert not notice.is_set
    os.kill(os.getpid(), getattr(signal, name))
    assert notice.is_set
    assert notice.reason == name


def test_the_first_reason_stays(notice):
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTERM)
    notice.trigger("later")
    assert notice.reason == "SIGUSR2"


def test_a_notice_does_not_interrupt_what_is_under_way(notice):
    read, write = os.pipe()
    code = f"import os, time; os.kill(os.getppid(), 15); time.sleep(0.2); os.write({write}, b'x')"
    child = subprocess.Popen([sys.executable, "-c", code], pass_fds=[write])
    assert os.read(read, 1) == b"x", "the read went on after the signal"
    child.wait()
    os.close(read)
    os.close(write)
    assert notice.reason == "SIGTERM"


def test_the_jobs_end_counts_from_the_lead_on():
    notice = StopSignal()
    notice.set_deadline(time.time() + 100, lead_seconds=60)
    assert not notice.is_set
    notice.set_deadline(time.time() + 60.2, lead_seconds=60)
    assert not notice.is_set
    time.sleep(0.25)
    assert notice.is_set
    assert notice.reason == "time limit"


def test_no_end_is_no_notice():
    notice = StopSignal()
    notice.set_deadline(None, lead_seconds=60)
    assert not notice.is_set
    assert notice.reason is None


def test_a_signal_before_the_end_is_the_reason():
    notice = StopSignal()
    notice.trigger("SIGTERM")
    notice.set_deadline(time.time() - 10, lead_seconds=60)
    assert notice.is_set
    assert notice.reason == "SIGTERM"


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
def test_when_slurm_ends_the_job(environ, end):
    assert job_end_time(environ) == end
