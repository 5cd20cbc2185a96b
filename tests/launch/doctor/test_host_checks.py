import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hsadml_dist.launch.doctor import host_checks as machine
from hsadml_dist.launch.doctor.host_checks import (
    GIBIBYTE,
    check_host_limits,
    check_this_machine,
    check_versions,
    compare_versions,
    host_limits,
    pins,
    versions,
)

HAVE = {"python": "3.11.7", "torch": "2.13.0+cpu", "monai": "1.5.0", "webdataset": "1.0", "deepspeed": None}


def test_installed_versions_are_named_without_an_import():
    found = versions()
    assert found["torch"] == version("torch")
    assert set(found) == {"python", "hsadml-dist", "torch", "monai", "webdataset", "deepspeed"}


def test_the_clones_pins_are_compared_with():
    by_name = {one.name: one for one in check_versions()}
    assert by_name["python"].verdict == "ok"


def test_another_version_than_the_tested_one_is_a_remark():
    by_name = {one.name: one for one in compare_versions(HAVE, pins("torch==2.13.0\n# x\nMONAI==1.6.0\n"))}
    assert by_name["torch"].found == "2.13.0+cpu"
    assert by_name["monai"].found == "1.5.0; 1.6.0 was tested with the others"
    assert by_name["deepspeed"].found == "not installed"
    assert all(one.verdict == "ok" for one in by_name.values())
    assert "training" not in by_name


def test_a_login_node_without_torch_is_told_that_this_is_fine():
    by_name = {one.name: one for one in compare_versions({**HAVE, "torch": None, "hsadml-dist": None}, {})}
    assert by_name["training"].found.startswith("no torch here: fine on a login node")
    assert by_name["hsadml-dist"].found == "runs from a clone, not installed"


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


ROOT = Path(__file__).parents[3]
GROUPS = ["programs", "this machine", "file system", "slurm"]


def test_groups_follow_one_another(tmp_path):
    found = list(check_this_machine(tmp_path / "runs", None, {"PATH": ""}))
    assert list(dict.fromkeys(one.group for one in found)) == GROUPS
    assert [one.group for one in found] == sorted((one.group for one in found), key=GROUPS.index)
    assert not (tmp_path / "runs").exists()


def test_a_login_node_needs_no_torch(tmp_path):
    code = (
        "import sys; from hsadml_dist.launch.cli import main; main(['doctor', '--json']);print('LOADED', *sys.modules)"
    )
    environ = {"PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "matplotlib", "monai"} & set(done.stdout.partition("LOADED")[2].split())
