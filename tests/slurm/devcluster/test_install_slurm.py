"""The script that installs Slurm: where it must do nothing, it does nothing and says why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hsadml_dist.slurm import devcluster as box

SCRIPT = Path(box.__file__).with_name("install.sh")


def install(**environment: str) -> list[str]:
    done = subprocess.run([SCRIPT], env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_it_obeys_the_switch() -> None:
    assert install(INSTALL_SLURM="0") == ["slurm: not installed: INSTALL_SLURM=0"]


@pytest.mark.slurm
def test_it_leaves_an_installed_slurm_alone() -> None:
    (line,) = install()
    assert line.startswith("slurm: already installed (slurm")
