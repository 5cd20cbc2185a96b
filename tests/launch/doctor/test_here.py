import subprocess
import sys
from pathlib import Path

from hsadml_dist.launch.doctor.here import check_this_machine

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
