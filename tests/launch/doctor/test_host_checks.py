import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hsadml_dist.launch.doctor.host_checks import (
    GIBIBYTE,
    UNLIMITED,
    check_host_limits,
    check_open_files,
    check_shared_memory,
    check_this_machine,
    check_umask,
    check_versions,
    compare_versions,
    host_limits,
    installed_versions,
    parse_constraints,
)

INSTALLED = {"python": "3.11.7", "torch": "2.13.0+cpu", "monai": "1.5.0", "webdataset": "1.0", "deepspeed": None}


def test_installed_versions_of_all_packages():
    found = installed_versions()
    assert found["torch"] == version("torch")
    assert set(found) == {"python", "hsadml-dist", "torch", "monai", "webdataset", "deepspeed"}


def test_check_versions_of_this_machine():
    by_name = {one.name: one for one in check_versions()}
    assert by_name["python"].verdict == "ok"


def test_untested_version_is_reported_as_ok():
    by_name = {
        one.name: one for one in compare_versions(INSTALLED, parse_constraints("torch==2.13.0\n# x\nMONAI==1.6.0\n"))
    }
    assert by_name["torch"].found == "2.13.0+cpu"
    assert "1.5.0" in by_name["monai"].found and "1.6.0" in by_name["monai"].found
    assert by_name["deepspeed"].found == "not installed"
    assert all(one.verdict == "ok" for one in by_name.values())
    assert "training" not in by_name


def test_missing_torch_is_ok_on_a_login_node():
    by_name = {one.name: one for one in compare_versions({**INSTALLED, "torch": None, "hsadml-dist": None}, {})}
    assert by_name["training"].verdict == "ok" and "torch" in by_name["training"].found
    assert "clone" in by_name["hsadml-dist"].found


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_host_limits_of_this_process(umask, monkeypatch):
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    umask(0o027)
    found = host_limits()
    assert found.umask == 0o027 and os.umask(0o027) == 0o027
    assert found.files in (resource.getrlimit(resource.RLIMIT_NOFILE)[0], UNLIMITED)
    assert found.cpus == len(os.sched_getaffinity(0))
    assert [one.name for one in check_host_limits(found)] == ["umask", "shared memory", "open files", "processors"]


def test_host_limits_in_a_job_step_count_the_cpus_of_the_task(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert host_limits().cpus == len(os.sched_getaffinity(0))
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert host_limits().cpus == 1


@pytest.mark.parametrize(
    ("umask", "status"), [(0o022, "ok"), (0o027, "ok"), (0o077, "ok"), (0o020, "warn"), (0, "warn")]
)
def test_check_umask(umask, status):
    assert check_umask(umask, "g").verdict == status


@pytest.mark.parametrize(("free", "status"), [(8 * GIBIBYTE, "ok"), (2**26, "warn"), (None, "unknown")])
def test_check_shared_memory(free, status):
    assert check_shared_memory(8 * GIBIBYTE if free else None, free, "g").verdict == status


@pytest.mark.parametrize(("files", "status"), [(UNLIMITED, "ok"), (1024, "ok"), (256, "warn")])
def test_check_open_files(files, status):
    assert check_open_files(files, "g").verdict == status


ROOT = Path(__file__).parents[3]
GROUPS = ["programs", "this machine", "file system", "slurm"]


def test_results_of_a_group_are_consecutive(tmp_path):
    found = list(check_this_machine(tmp_path / "runs", None, {"PATH": ""}))
    assert list(dict.fromkeys(one.group for one in found)) == GROUPS
    assert [one.group for one in found] == sorted((one.group for one in found), key=GROUPS.index)
    assert not (tmp_path / "runs").exists()


def test_doctor_does_not_import_torch(tmp_path):
    code = (
        "import sys; from hsadml_dist.launch.cli import main; main(['doctor', '--json']);print('LOADED', *sys.modules)"
    )
    environ = {"PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "matplotlib", "monai"} & set(done.stdout.partition("LOADED")[2].split())
