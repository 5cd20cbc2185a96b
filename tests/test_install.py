"""Installation instructions: few commands each; the wheelhouse for a machine without internet is really built."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "install.md"
MAX_COMMANDS = 8


def install_commands() -> dict[str, list[str]]:
    """Return the commands of each section, by its title."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(), flags=re.MULTILINE)[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    blocks = {title: re.findall(r"^```\n(.*?)^```", text, re.M | re.S) for title, text in texts.items()}
    return {title: "".join(found).splitlines() for title, found in blocks.items()}


def test_each_section_has_few_commands() -> None:
    assert len(install_commands()) == 3
    assert all(1 < len(commands) <= MAX_COMMANDS for commands in install_commands().values()), install_commands()


def test_extras_and_files_named_by_the_page_exist() -> None:
    text = PAGE.read_text()
    extras = {name for names in re.findall(r"\[([a-z,]+)\]\"", text) for name in names.split(",")}
    setup = (ROOT / "setup.cfg").read_text()
    assert extras == {"train", "demo"}
    assert all(re.search(rf"^{name} =", setup, re.MULTILINE) for name in extras)
    assert all((ROOT / name).is_file() for name in ("constraints.txt", "slurm/hsadml.def"))


@pytest.mark.soak
def test_wheelhouse_installs_without_an_index(tmp_path: Path) -> None:
    """Run the page's commands for a login node in a clone, with the package index unreachable."""
    clone, home = tmp_path / "clone", tmp_path / "home"
    ignored = shutil.ignore_patterns(".*", "build", "out", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, clone, symlinks=True, ignore=ignored)
    home.mkdir()
    commands = [shlex.split(line) for line in install_commands()["With Apptainer"]]
    (wheel,) = [words for words in commands if "wheel" in words]
    subprocess.run([sys.executable, *wheel[1:]], cwd=clone, check=True)
    shutil.move(clone / "wheelhouse", home)
    pins = {line.lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for file in home.glob("wheelhouse/*.whl"):
        name, version = file.name.split("-")[:2]
        assert name == "hsadml_dist" or {f"{name}=={version}".lower(), f"{name.replace('_', '-')}=={version}"} & pins
    offline = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9",
    }
    (venv,) = [words for words in commands if "venv" in words[1:3]]
    (install,) = [words for words in commands if "install" in words]
    (copy,) = [words for words in commands if words[1:3] == ["profile", "copy"]]
    subprocess.run([sys.executable, *venv[1:]], cwd=home, env=offline, check=True)
    subprocess.run([word.replace("~", str(home)) for word in install], cwd=home, env=offline, check=True)
    subprocess.run(copy, cwd=home, env=offline, check=True)
    assert (home / ".config/hsadml/profiles/mine.yaml").is_file()
    megabytes = sum(file.stat().st_size for file in (home / "venv").rglob("*") if file.is_file()) / 1e6
    assert megabytes < 100
