"""``hsadml doctor`` without Slurm; with it, see tests/slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hsadml_dist.launch.cli import main


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current directory, and no Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_CONF", raising=False)


def test_a_laptop_is_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("programs\n  ok    python ")
    assert "none on this machine; `hsadml train` runs without it" in told
    assert not list(tmp_path.iterdir())


def test_programs_get_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(set(one) == {"group", "name", "verdict", "found", "todo"} for one in found)
    assert {one["verdict"] for one in found} <= {"ok", "warn", "unknown"}


def test_something_that_would_fail_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run", "/proc/run"]) == 1
    assert "FAIL  writing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--nodes", "0"], 2, "--nodes 0: at least 1"),
        (["--nodes", "1", "--tasks-per-node", "0"], 2, "--tasks-per-node 0: at least 1"),
        (["--nodes", "1"], 1, "Slurm is not installed here"),
        (["--profile", "nowhere"], 1, "no profile 'nowhere'"),
    ],
)
def test_a_wrong_wish_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str) -> None:
    assert main(["doctor", *words]) == code
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1
    assert not told.out
