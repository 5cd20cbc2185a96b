"""``make gpu`` small and on the CPU: every case runs or says why not, and no figure of a cut run is lost."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
HANG_SECONDS = 1700


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a small run of all cases on the CPU."""
    path = tmp_path_factory.mktemp("gpu") / "new" / "gpu.json"
    options = ["--device", "cpu", "--tiny", "--json", str(path), "--seconds", str(HANG_SECONDS)]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.timeout(HANG_SECONDS + 100)
def test_every_case_passes_or_says_why_not(small_run: dict[str, Any], load: Callable[[str], ModuleType]) -> None:
    assert [case["name"] for case in small_run["cases"]] == [case.name for case in load("gpu_cases").CASES]
    for case in small_run["cases"]:
        assert case["status"] == "passed" or (case["status"] == "unavailable" and case["reason"]), case


def test_figures_of_the_cases(small_run: dict[str, Any]) -> None:
    figures = {case["name"]: case.get("figures", {}) for case in small_run["cases"]}
    assert figures["resume"]["resumed"] == "bit-equal"
    assert 0 < figures["resume"]["stopped at"] < figures["resume"]["of"]
    assert set(figures["engines"]) >= {"ddp", "zero 0", "zero 3"}
    modes = {(row["mode"], row["loop"]) for row in figures["speed"]["rows"]}
    assert modes >= {("bf16", "ours"), ("bf16", "bare"), ("bf16, channels first", "ours"), ("fp32", "bare")}
    assert all(row["images_per_second"] > 0 and row["tflops"] > 0 for row in figures["speed"]["rows"])
    assert {row["loss"] for row in figures["loss speed"]["rows"]} >= {"store", "stream"}


def test_page_shows_every_case_and_table(small_run: dict[str, Any], load: Callable[[str], ModuleType]) -> None:
    page = load("gpu_page").page(small_run)
    for case in small_run["cases"]:
        assert f"| {case['name']} | {case['about']} |" in page
    assert page.count("\n## ") == 3
    assert "| small ResNet | bf16 | bare |" in page


def test_page_of_the_project_shows_the_recorded_run(load: Callable[[str], ModuleType]) -> None:
    gpu_page = load("gpu_page")
    recorded = json.loads(gpu_page.RECORDED.read_text()) if gpu_page.RECORDED.exists() else None
    assert (ROOT / "docs" / "gpu.md").read_text() == gpu_page.page(recorded), "run benchmarks/gpu_page.py"


def run_samples(
    load: Callable[[str], ModuleType],
    path: Path,
    functions: dict[str, Callable[[Any], Any]],
    *,
    seconds: float = 60.0,
    needed: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Run functions as cases of at most five seconds on the CPU; return the exit code and the results by name."""
    cases, gpu = load("gpu_cases"), load("gpu")

    class Sample(cases.Case):
        def load(self) -> Callable[[Any], Any]:
            return functions[self.name]

    options = argparse.Namespace(device="cpu", tiny=True, json=path / "gpu.json", seconds=seconds)
    samples = [Sample(name=name, about=name, function="-", limit_seconds=0.5, needed=needed) for name in functions]
    code = gpu.run_cases(options, samples)
    return code, {case["name"]: case for case in json.loads((path / "gpu.json").read_text())["cases"]}


def test_a_case_that_fails_keeps_its_figures_and_fails_the_run(
    load: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    def fail(setup: Any) -> None:
        setup.save({"first": 1})
        raise AssertionError("second is wrong")

    code, results = run_samples(load, tmp_path, {"bad": fail, "good": lambda setup: {"answer": 42}})
    assert code == 1
    assert results["bad"]["status"] == "failed" and results["bad"]["figures"] == {"first": 1}
    assert "second is wrong" in results["bad"]["reason"] and "Traceback" in results["bad"]["output"]
    assert results["good"]["status"] == "passed" and results["good"]["figures"] == {"answer": 42}


def test_a_case_over_its_limit_is_cut_short_with_its_figures(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    def hang(setup: Any) -> None:
        setup.save({"first": 1})
        child = subprocess.Popen(["sleep", "600"])
        (tmp_path / "pid").write_text(str(child.pid))
        time.sleep(600)

    code, results = run_samples(load, tmp_path, {"long": hang})
    assert code == 0
    assert results["long"]["status"] == "cut short" and results["long"]["figures"] == {"first": 1}
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_cases_are_left_out_when_the_time_is_over(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    code, results = run_samples(load, tmp_path, {"late": lambda setup: {}}, seconds=0.0)
    assert code == 0
    assert results["late"]["status"] == "left out" and results["late"]["reason"]


def test_nothing_runs_after_a_needed_case_has_failed(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    def fail(setup: Any) -> None:
        raise AssertionError("no GPU")

    code, results = run_samples(load, tmp_path, {"first": fail, "second": lambda setup: {}}, needed=True)
    assert code == 1
    assert results["first"]["status"] == "failed" and results["second"]["status"] == "left out"


def test_a_case_that_cannot_run_here_is_unavailable(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    def need(setup: Any) -> None:
        raise load("gpu_cases").Unavailable("no such device")

    code, results = run_samples(load, tmp_path, {"rare": need})
    assert code == 0
    assert results["rare"]["status"] == "unavailable" and results["rare"]["reason"] == "no such device"
