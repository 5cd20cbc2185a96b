"""The layers of setup.cfg hold, and what a login node runs imports without the heavy packages."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
HEAVY = ["torch", "numpy", "matplotlib", "monai", "webdataset", "deepspeed", "submitit"]
LOGIN_NODE_FOLDERS = ("config", "jobs", "slurm", "run", "launch/cli")
IMPORT_ALL = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & set(json.loads(sys.argv[2])))))
"""


def modules_of(folder):
    for path in sorted((ROOT / "hsadml_dist" / folder).rglob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_layers_and_importers_of_third_party_packages_hold():
    command = [sys.executable, "-c", LINT, "--no-logo", "--no-cache", "--config", "setup.cfg"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_login_node_modules_import_without_heavy_packages():
    names = [name for folder in LOGIN_NODE_FOLDERS for name in modules_of(folder)]
    assert "hsadml_dist.launch.cli.cmd_status" in names
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(names), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
