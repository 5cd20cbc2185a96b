"""``hsadml doctor`` without Slurm; tests/slurm runs it on clusters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hsadml_dist.launch.cli import main


@pytest.fixture(autouse=True)
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_CONF", raising=False)


def test_machine_without_slurm_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("programs\n  ok    python ")
    assert "hsadml train" in printed
    assert not list(tmp_path.iterdir())


def test_json_is_a_list_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(set(one) == {"group", "name", "verdict", "found", "todo"} for one in found)
    assert {one["verdict"] for one in found} <= {"ok", "warn", "unknown"}


def test_failed_check_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run", "/proc/run"]) == 1
    assert "FAIL  writing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "fact"),
    [
        (["--nodes", "0"], 2, "--nodes 0: "),
        (["--nodes", "1", "--tasks-per-node", "0"], 2, "--tasks-per-node 0: "),
        (["--nodes", "1"], 1, "Slurm"),
        (["--profile", "nowhere"], 1, "'nowhere'"),
    ],
)
def test_invalid_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, fact: str
) -> None:
    assert main(["doctor", *words]) == code
    printed = capsys.readouterr()
    assert fact in printed.err and printed.err.count("\n") == 1
    assert not printed.out
