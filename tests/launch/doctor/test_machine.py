import os
import resource

import pytest

from hsadml_dist.launch.doctor import machine
from hsadml_dist.launch.doctor.machine import GIBIBYTE, check_host_limits, host_limits


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_what_this_process_is_given(umask):
    umask(0o027)
    found = host_limits()
    assert found.umask == 0o027 and os.umask(0o027) == 0o027
    assert found.files in (resource.getrlimit(resource.RLIMIT_NOFILE)[0], machine.UNLIMITED)
    assert found.cpus == len(os.sched_getaffinity(0))
    assert [one.name for one in check_host_limits(found)] == ["umask", "shared memory", "open files", "processors"]


def test_a_task_counts_the_processors_that_slurm_gave_it(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert host_limits().cpus == len(os.sched_getaffinity(0))
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert host_limits().cpus == 1


@pytest.mark.parametrize(
    ("umask", "verdict"), [(0o022, "ok"), (0o027, "ok"), (0o077, "ok"), (0o020, "warn"), (0, "warn")]
)
def test_others_may_not_write(umask, verdict):
    assert machine.check_umask(umask, "g").verdict == verdict


@pytest.mark.parametrize(("free", "verdict"), [(8 * GIBIBYTE, "ok"), (2**26, "warn"), (None, "unknown")])
def test_room_for_batches(free, verdict):
    assert machine.check_shared_memory(8 * GIBIBYTE if free else None, free, "g").verdict == verdict


@pytest.mark.parametrize(("files", "verdict"), [(machine.UNLIMITED, "ok"), (1024, "ok"), (256, "warn")])
def test_open_files(files, verdict):
    assert machine.check_open_files(files, "g").verdict == verdict
