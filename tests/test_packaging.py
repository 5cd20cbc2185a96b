import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("hsadml_dist", "launch", "shards", "slurm", "setup.cfg", "pyproject.toml", "README.md")
PACKAGED = {".py", ".yaml", ".sbatch", ".html", ".j2", ".css", ".typed"}
# Used by make and for building an image from a clone; a wheel does not need them.
LEFT_OUT = {".sh", ".def"}
LIST = ("-m", "hsadml_dist.launch.cli", "recipes", "list")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Copy the sources: a build inside the tree would leave files there and include stale ones."""
    folder = tmp_path_factory.mktemp("clone")
    for name in filter(lambda name: (ROOT / name).exists(), SOURCES):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, clone)
    return next(folder.glob("*.whl"))


def pip(*words):
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)], check=True, capture_output=True
    )


def environ(**more):
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more


def python(*words, cwd, **more):
    words = [sys.executable, *words]
    return subprocess.run(words, cwd=cwd, env=environ(**more), capture_output=True, text=True, check=True).stdout


def files_of(tree):
    package = tree / "hsadml_dist"
    files = (Path(folder, name) for folder, _, names in os.walk(package, followlinks=True) for name in names)
    return {str(file.relative_to(tree)) for file in files}


def test_wheel_contains_every_module_and_data_file(wheel, clone):
    tree = files_of(clone)
    suffixes = {Path(name).suffix for name in tree}
    assert suffixes <= PACKAGED | LEFT_OUT, "a kind of file that package_data in setup.cfg may lack"
    expected = {name for name in tree if Path(name).suffix in PACKAGED}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_wheel_has_one_import_name(wheel):
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hsadml_dist"}


def test_command_line_runs_from_the_clone_root(clone):
    assert python("-c", "import hsadml_dist; print(hsadml_dist.__file__)", cwd=clone).startswith(str(clone))
    assert "demo" in python(*LIST, cwd=clone)


def test_command_line_runs_with_pythonpath_only(clone, tmp_path):
    where = python("-c", "import hsadml_dist; print(hsadml_dist.__file__)", cwd=tmp_path, PYTHONPATH=str(clone))
    assert where.startswith(str(clone))
    assert "demo" in python(*LIST, cwd=tmp_path, PYTHONPATH=str(clone))


def test_command_line_runs_from_an_installed_wheel(wheel, tmp_path):
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    site = {"PYTHONPATH": str(tmp_path / "site")}
    where = python("-c", "import hsadml_dist; print(hsadml_dist.__file__)", cwd=tmp_path, **site)
    assert where.startswith(str(tmp_path / "site"))
    assert "demo" in python(*LIST, cwd=tmp_path, **site)
    script = [tmp_path / "site/bin/hsadml", "train", "demo", "--print-config"]
    done = subprocess.run(script, cwd=tmp_path, env=environ(**site), capture_output=True, text=True, check=True)
    assert "# demo.yaml:" in done.stdout


def test_constraints_pin_the_requirements():
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "monai", "webdataset", "submitit", "pyyaml", "pydantic", "cyclopts", "numpy"} <= pins
