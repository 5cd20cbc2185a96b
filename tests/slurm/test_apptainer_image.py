"""The definition of the Apptainer image: its sections, and that its files build the package. Needs no Apptainer."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEFINITION = ROOT / "slurm" / "hsadml.def"
SECTIONS = {"files", "post", "environment", "runscript", "test", "labels", "help"}


def header() -> dict[str, str]:
    head = re.split(r"^%", DEFINITION.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    return dict(line.split(": ", 1) for line in head.splitlines() if line and not line.startswith("#"))


def sections() -> dict[str, list[str]]:
    parts = re.split(r"^%(\w+)\n", DEFINITION.read_text(), flags=re.MULTILINE)[1:]
    return {name: body.strip().splitlines() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def files() -> dict[str, str]:
    return dict(line.split() for line in sections()["files"])


def test_base_image_has_the_required_python() -> None:
    assert header()["Bootstrap"] == "docker"
    version = re.fullmatch(r"python:3\.(\d+)-slim-\w+", header()["From"])
    needed = re.search(r"python_requires = >=3\.(\d+)", (ROOT / "setup.cfg").read_text())
    assert version is not None
    assert needed is not None
    assert int(version[1]) >= int(needed[1])


def test_sections_are_complete_and_valid_shell() -> None:
    assert set(sections()) == SECTIONS
    for name in ("post", "environment", "runscript", "test"):
        subprocess.run(["sh", "-n", "-c", "\n".join(sections()[name])], check=True)


def test_package_is_installed_with_constraints_from_copied_files() -> None:
    (install,) = [shlex.split(line) for line in sections()["post"] if " pip install " in line]
    assert install[install.index("-c") + 1] == files()["constraints.txt"]
    assert install[-1] == str(Path(files()["setup.cfg"]).parent) + "[train]"
    assert all((ROOT / source).exists() for source in files())


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with the files of %files; links are followed, as Apptainer does."""
    root = tmp_path_factory.mktemp("image")
    for source, target in files().items():
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-fLr", ROOT / source, place], check=True)
    return root


def test_copied_files_build_the_complete_package(inside: Path, tmp_path: Path) -> None:
    folder = inside / Path(files()["setup.cfg"]).parent.relative_to("/")
    words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, folder]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    walked = os.walk(ROOT / "hsadml_dist", followlinks=True)
    modules = {str(Path(at, name).relative_to(ROOT)) for at, _, names in walked for name in names}
    wanted = {name for name in modules if name.endswith((".py", ".yaml", ".sbatch"))}
    assert wanted <= held
