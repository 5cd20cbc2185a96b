import subprocess
import sys
from pathlib import Path

from hsadml_dist.launch.doctor.probe_job import read_rank_reports

ROOT = Path(__file__).parents[3]


def probe_rank(*arguments, **environ):
    command = [sys.executable, "-m", "hsadml_dist.launch.doctor.probe_rank", *map(str, arguments)]
    environ = {"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600, check=False)


def test_single_rank_writes_a_complete_report(tmp_path):
    done = probe_rank(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    (report,) = read_rank_reports(tmp_path).values()
    assert report.rank == 0 and report.together is not None and not report.error
    assert report.package == str(ROOT / "hsadml_dist")
    assert "sbatch" in report.programs and "sbatch" in report.submit


def test_wrong_arguments_are_a_usage_error():
    done = probe_rank()
    assert done.returncode == 2
    assert "FOLDER" in done.stderr and done.stderr.count("\n") == 1
