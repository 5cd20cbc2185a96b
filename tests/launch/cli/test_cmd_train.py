import json
import sys
from functools import partial
from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.launch import cli
from hsadml_dist.launch.local import run_ranks
from tests.report.report_samples import result_of

RANK = """
import json, os, sys
from pathlib import Path
run, stop = Path(sys.argv[1]), os.environ.get("HSADML_STOP_AFTER")
with open(run / f"calls-{os.environ['RANK']}", "a") as file:
    file.write(f"{stop}\\n")
number = 1 if stop else 2
attempt = run / "attempts" / f"000{number}"
attempt.mkdir(parents=True)
(attempt / "metrics.jsonl").write_text(json.dumps({"step": number, "attempt": number}) + "\\n")
(run / "result.json").write_text("{}")
sys.exit(85 if stop else 0)
"""
# Defects that a smoke test must detect: (part of RANK, its replacement, exit code of the smoke test).
DEFECTS = {
    "ignores_the_stop": ("85 if", "0 if", 70),
    "fails_to_resume": ("else 0", "else 75", 75),
    "repeats_a_step": ('"step": number', '"step": 1', 70),
    "writes_no_result": ('"result.json"', '"other.json"', 70),
}


@pytest.fixture
def ranks(monkeypatch):
    """Set the code that ranks run; by default they end at once and record whether they were to stop."""

    def run(code):
        command = [sys.executable, "-c", code]
        monkeypatch.setattr("hsadml_dist.launch.cli.cmd_train.run_ranks", partial(run_ranks, command=command))

    run(RANK)
    return run


def test_print_config_prints_a_recipe_and_trains_nothing(recipe, capsys, tmp_path):
    assert cli.main(["train", recipe, "train.seed=4", "--print-config", "--nproc", "3"]) == 0
    text = capsys.readouterr().out
    assert "seed: 4" in text and "# command line" in text and "# mine.yaml:2" in text and "# default" in text
    (tmp_path / "printed.yaml").write_text(text)
    assert load_recipe(tmp_path / "printed.yaml").recipe.train.seed == 4
    assert not Path("runs").exists()


def test_train_prepares_the_folder_and_starts_the_ranks(recipe, ranks, capfd):
    ranks(RANK.replace("mkdir(parents=True", "mkdir(parents=True, exist_ok=True").replace("result.json", "other.json"))
    assert cli.main(["train", recipe, "--nproc", "2", "--run", "mine", "train.seed=4"]) == 0
    assert load_recipe(Path("mine/config.yaml")).recipe.train.seed == 4
    assert [Path(f"mine/calls-{rank}").read_text() for rank in range(2)] == ["None\n"] * 2
    assert capfd.readouterr().out.startswith("run folder: mine\n")


def test_train_returns_the_exit_code_of_the_ranks(recipe, ranks):
    ranks("import sys; sys.exit(75)")
    assert cli.main(["train", recipe]) == 75


def test_train_reports_a_stop_and_the_report(recipe, ranks, capfd):
    ranks("import sys; sys.exit(85)")
    assert cli.main(["train", recipe, "--run", "mine"]) == 85
    assert "stopped" in capfd.readouterr().out
    Path("result.json").write_text(json.dumps(result_of()))
    Path("report.html").touch()
    ranks("import shutil, sys; [shutil.copy(name, sys.argv[1]) for name in ('result.json', 'report.html')]")
    assert cli.main(["train", recipe, "--run", "mine"]) == 0
    out = capfd.readouterr().out
    assert "mine/report.html" in out and f"{result_of()['knn_accuracy']:.2%}" in out
    assert cli.main(["train", recipe, "--run", "mine"]) == 0


def test_smoke_stops_once_and_resumes(recipe, ranks, capfd):
    assert cli.main(["train", recipe, "--smoke", "--run", "mine"]) == 0
    assert Path("mine-smoke/calls-0").read_text() == "1\nNone\n"
    assert not Path("mine").exists()
    assert capfd.readouterr().out.endswith("smoke: passed\n")


@pytest.mark.parametrize("defect", DEFECTS)
def test_smoke_fails_for_each_defect(recipe, ranks, capfd, defect):
    part, instead, code = DEFECTS[defect]
    assert part in RANK
    ranks(RANK.replace(part, instead))
    assert cli.main(["train", recipe, "--smoke"]) == code
    assert "smoke: failed: " in capfd.readouterr().out


def test_invalid_settings_are_reported_before_ranks_start(recipe, ranks, capsys):
    assert cli.main(["train", recipe, "train.sed=4", "train.global_batch=x", "--run", "mine"]) == 1
    assert capsys.readouterr().err.count("command line: train.") == 2
    assert not Path("mine").exists()
