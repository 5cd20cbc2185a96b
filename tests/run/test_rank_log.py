import subprocess
import sys

from hsadml_dist.run.folder import RunFolder

CODE = """
import ctypes, logging, sys
from pathlib import Path
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rank_log import configure_rank_logging
configure_rank_logging(RunFolder(Path(sys.argv[1])).attempt(1), int(sys.argv[2]))
logging.getLogger("hsadml_dist.train").warning("checkpoint %s passed over", "x")
logging.getLogger("other").debug("too much")
ctypes.string_at(0)
"""


def test_records_and_a_crashs_stacks_go_to_the_ranks_file(tmp_path):
    attempt = RunFolder(tmp_path).attempt(1)
    attempt.path.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path), "2"], capture_output=True, text=True, check=False)
    assert done.returncode < 0, "it was made to crash"
    said = attempt.log(2).read_text()
    assert "WARNING hsadml_dist.train: checkpoint x passed over" in said
    assert "too much" not in said
    assert "Fatal Python error: Segmentation fault" in said
    assert 'File "<string>", line 9' in said
    assert attempt.log(2).name == "rank-0002.log"
    assert "passed over" not in done.stderr


def test_rank_0_says_warnings_aloud(tmp_path):
    RunFolder(tmp_path).attempt(1).path.mkdir(parents=True)
    command = [sys.executable, "-c", CODE, str(tmp_path), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "hsadml: checkpoint x passed over\n"
