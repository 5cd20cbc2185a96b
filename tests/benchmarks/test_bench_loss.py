"""The benchmark of the loss: a small run from end to end, and that a wrong gradient ends it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HANG_SECONDS = 800
OURS_AND_PLAIN = ("ours-store", "ours-stream", "plain-autograd", "partial-fc-style")
BATCH, DIM, CLASSES, LARGE, ROUNDS = 32, 16, 300, 700, 1


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The cases of a small run without pytorch-metric-learning, by what is measured and by implementation."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as fault:
        pytest.skip(f"this kernel does not let a process measure its peak anew: {fault}")
    path = tmp_path_factory.mktemp("bench") / "sub" / "loss.json"
    sizes = {"batch": BATCH, "dim": DIM, "classes": CLASSES, "large": LARGE, "rounds": ROUNDS}
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, str(BENCHMARKS / "loss.py"), "--json", str(path), "--losses", "cosface", *words]
    done = subprocess.run(
        [*command, "--implementations", *OURS_AND_PLAIN],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["machine"]["threads"] == 1
    found: dict[str, dict[str, Any]] = {}
    for case in written["cases"]:
        found.setdefault(case["case"], {})[case["implementation"]] = case
    return found


def of_kind(cases: dict[str, dict[str, Any]], start: str, end: str = "") -> dict[str, Any]:
    """Return the implementations of the one case whose title fits."""
    (match,) = [ways for title, ways in cases.items() if title.startswith(start) and end in title]
    return match


def test_run_measures_every_implementation_and_its_gradient_error(cases: dict[str, dict[str, Any]]) -> None:
    ways = of_kind(cases, "cosface")
    assert set(ways) == set(OURS_AND_PLAIN)
    for case in ways.values():
        assert len(case["seconds"]) == len(case["extra_mib_samples"]) == ROUNDS
        assert all(seconds > 0 for seconds in case["seconds"])
        assert case["extra_mib"] >= 0
        assert set(case["gradient_errors"]) == {"small, fp32", "small, fp64", "measured, fp32"}
        assert 0 < case["gradient_errors"]["small, fp32"] < 1e-5
        assert case["gradient_errors"]["small, fp64"] < 1e-12


def test_bytes_sent_match_the_formulas(cases: dict[str, dict[str, Any]]) -> None:
    sent = {name: case["sent_bytes"] for name, case in of_kind(cases, "messages").items()}
    sizes, rows, labels, three_vectors, loss = 2 * 8, BATCH // 2 * DIM * 4, BATCH // 2 * 8, 3 * BATCH * 4, 4
    assert sent == {
        "ddp-all-reduce": CLASSES * DIM * 4,
        "ours-replicated": CLASSES * DIM * 4 + loss,
        "ours-sharded": sizes + rows + labels + three_vectors + rows + loss,
    }


def test_large_case_reports_the_whole_process(cases: dict[str, dict[str, Any]]) -> None:
    (case,) = of_kind(cases, "sphereface", f"C {LARGE},").values()
    assert len(case["seconds"]) == 1
    assert 0.05 < case["peak_rss_gib"] < 2


def test_rank_holds_its_rows_their_gradient_and_two_moments(cases: dict[str, dict[str, Any]]) -> None:
    for world, rows in ((1, CLASSES), (4, CLASSES / 4)):
        held = of_kind(cases, "what a rank holds", f"{world} rank(s)")["ours-sharded"]["held_bytes"]
        row = DIM * 4
        assert held.pop("step") == 4
        assert held == dict.fromkeys(("weights", "gradient", "exp_avg", "exp_avg_sq"), rows * row)


def test_differing_gradients_end_the_benchmark(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = load("loss")

    class Wrong:
        def __init__(self, order: dict[str, Any]) -> None:
            assert order["role"] == "gradients"

        def answer(self) -> dict[str, dict[str, float]]:
            return {"small, fp64": {"ours-store": 1e-15, "plain-autograd": float("nan")}}

        def end(self) -> None:
            pass

    monkeypatch.setattr(loss, "Process", Wrong)
    options = argparse.Namespace(batch=1, dim=1, classes=1, threads=1, implementations=[])
    with pytest.raises(SystemExit, match="plain-autograd by nan") as ended:
        loss.equal_gradients("cosface", "cpu", options)
    assert "ours-store" not in str(ended.value)


def test_scaled_gradient_is_detected(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    ways, process = load("loss_variants"), load("loss_process")
    problem = ways.Problem(loss="sphereface", batch=4, dim=3, classes=5, dtype=torch.float64)

    def one_percent_off(problem: Any) -> Any:
        right = ways.plain_autograd(problem)
        return replace(right, loss=lambda: 1.01 * right.loss())

    monkeypatch.setitem(ways.WAYS, "off", one_percent_off)
    truth = process._gradients("plain-autograd", problem)
    errors = process._errors(["ours-store", "off"], problem, truth)
    assert errors["ours-store"] < 1e-14
    assert errors["off"] == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["sphereface", "cosface"])
def test_pytorch_metric_learning_computes_the_same_function(load: Callable[[str], ModuleType], name: str) -> None:
    pytest.importorskip("pytorch_metric_learning")
    ways, process = load("loss_variants"), load("loss_process")
    problem = ways.Problem(loss=name, batch=8, dim=5, classes=11, dtype=torch.float64)
    truth = process._gradients("plain-autograd", problem)
    assert process._errors(["pytorch-metric-learning"], problem, truth)["pytorch-metric-learning"] < 1e-14
    values = [way(problem).loss().item() for way in (ways.metric_learning, ways.plain_autograd)]
    assert values[0] == pytest.approx(values[1], rel=1e-14)
