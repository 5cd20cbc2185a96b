import subprocess
import sys
from pathlib import Path

from hsadml_dist.launch.doctor.rank_report import read_rank_reports

ROOT = Path(__file__).parents[3]


def node(*arguments, **environ):
    command = [sys.executable, "-m", "hsadml_dist.launch.doctor.probe_rank", *map(str, arguments)]
    environ = {"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_a_lone_rank_answers_all_it_can(tmp_path):
    done = node(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    (answer,) = read_rank_reports(tmp_path).values()
    assert answer.rank == 0 and answer.together is not None and not answer.error
    assert answer.package == str(ROOT / "hsadml_dist")
    assert "sbatch" in answer.programs and "sbatch is not on PATH" in answer.submit


def test_a_wrong_call_is_one_line():
    done = node()
    assert done.returncode == 2
    assert done.stderr.endswith("usage: python -m hsadml_dist.launch.doctor.probe_rank FOLDER\n")
