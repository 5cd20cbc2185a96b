"""The script that installs Slurm: cases in which it must do nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hsadml_dist.slurm import devcluster

SCRIPT = Path(devcluster.__file__).with_name("install.sh")


def install(**environment: str) -> list[str]:
    done = subprocess.run([SCRIPT], env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_install_does_nothing_if_switched_off() -> None:
    (line,) = install(INSTALL_SLURM="0")
    assert line.startswith("slurm: not installed: ") and "INSTALL_SLURM=0" in line


@pytest.mark.slurm
def test_install_keeps_an_installed_slurm() -> None:
    (line,) = install()
    assert line.startswith("slurm: already installed (slurm")
