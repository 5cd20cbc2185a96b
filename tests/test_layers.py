import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUN = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def test_no_package_imports_what_stands_above_it_or_a_library_that_is_not_its_own():
    words = [sys.executable, "-c", RUN, "--no-logo", "--no-cache", "--config", "setup.cfg"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Layers: a package imports only what stands below it KEPT" in done.stdout
