import sys
from functools import partial
from pathlib import Path

import pytest

from hsadml_dist.config.io import load_recipe
from hsadml_dist.launch import cli
from hsadml_dist.launch.local import run_ranks

RANK = """
import os, sys
from pathlib import Path
run = Path(sys.argv[1])
with open(run / f"calls-{os.environ['RANK']}", "a") as file:
    file.write(os.environ.get("HSADML_STOP_AFTER", "none") + "\\n")
sys.exit(85 if "HSADML_STOP_AFTER" in os.environ else 0)
"""


@pytest.fixture
def ranks(monkeypatch):
    """Takes the code that ranks run; at first they end at once and note whether they were to stop."""

    def run(code):
        command = [sys.executable, "-c", code]
        monkeypatch.setattr("hsadml_dist.launch.cli.train.run_ranks", partial(run_ranks, command=command))

    run(RANK)
    return run


def test_print_config_trains_nothing_and_is_a_recipe(recipe, capsys, tmp_path):
    assert cli.main(["train", recipe, "train.seed=4", "--print-config", "--nproc", "3"]) == 0
    text = capsys.readouterr().out
    assert "seed: 4" in text and "# command line" in text and "# mine.yaml:2" in text and "# default" in text
    (tmp_path / "printed.yaml").write_text(text)
    assert load_recipe(tmp_path / "printed.yaml").recipe.train.seed == 4
    assert not Path("runs").exists()


def test_train_prepares_the_folder_and_starts_the_ranks(recipe, ranks, capfd):
    assert cli.main(["train", recipe, "--nproc", "2", "--run", "mine", "train.seed=4"]) == 0
    assert load_recipe(Path("mine/config.yaml")).recipe.train.seed == 4
    assert [Path(f"mine/calls-{rank}").read_text() for rank in range(2)] == ["none\n", "none\n"]
    assert capfd.readouterr().out.startswith("run folder: mine\n")


def test_the_ranks_code_is_the_commands(recipe, ranks):
    code = "import sys; sys.exit(75)"
    ranks(code)
    assert cli.main(["train", recipe]) == 75


def test_smoke_stops_once_and_goes_on(recipe, ranks, capfd):
    assert cli.main(["train", recipe, "--smoke", "--run", "mine"]) == 0
    assert Path("mine-smoke/calls-0").read_text() == "1\nnone\n"
    assert not Path("mine").exists()
    assert capfd.readouterr().out.endswith("smoke: passed\n")


def test_smoke_fails_if_the_stop_does_not_work(recipe, ranks, capfd):
    code = RANK.replace("85 if", "0 if")
    ranks(code)
    assert cli.main(["train", recipe, "--smoke"]) == 70
    assert "smoke: failed: stop ended with exit code 0" in capfd.readouterr().out


def test_wrong_settings_come_before_any_process(recipe, ranks, capsys):
    assert cli.main(["train", recipe, "train.sed=4", "train.global_batch=x", "--run", "mine"]) == 1
    assert capsys.readouterr().err.count("command line: train.") == 2
    assert not Path("mine").exists()
