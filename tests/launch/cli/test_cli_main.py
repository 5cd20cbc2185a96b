import os
import re
import subprocess
import sys
import time

import pytest

from hsadml_dist.launch import cli

HELP = [sys.executable, "-m", "hsadml_dist.launch.cli", "--help"]
HEAVY = {"torch", "numpy", "matplotlib", "monai", "sklearn", "pydantic", "yaml", "submitit"}


def test_help_names_every_command_and_imports_none(capsys):
    code = (
        "import sys; from hsadml_dist.launch.cli import main; main(['--help']);"
        "print('LOADED', *[m for m in sys.modules if m.startswith('hsadml_dist.launch.cli.')], *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("LOADED")
    assert all(f" {name} " in text for name, _, _ in cli.COMMANDS)
    assert not HEAVY & set(loaded.split())
    assert not [name for name in loaded.split() if name.startswith("hsadml_dist.launch.cli.")]


def test_help_answers_in_under_0_4_seconds():
    best = min(_seconds(HELP) for _ in range(5))
    assert best < 0.4, f"{best:.2f} s"


def _seconds(words):
    began = time.perf_counter()
    subprocess.run(words, capture_output=True, check=True)
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trian"], r"hsadml: no command 'trian'; commands: shards, .*\(did you mean 'train'\?\)"),
        (["recipes", "lst"], r"hsadml: no command 'lst'; commands: list, show, copy \(did you mean 'list'\?\)"),
        (["train"], "hsadml: .*RECIPE.*"),
        (["train", "demo", "--nprocs", "2"], "hsadml: .*--nprocs.*--nproc.*"),
        (["train", "demo", "--nproc", "two"], "hsadml: .*two.*"),
        (["train", "demo", "--nproc", "0"], "hsadml: --nproc 0: at least 1"),
        (["evaluate"], "hsadml: evaluate: name at least one run folder"),
        (["metrics", "/no/run"], "hsadml: run folder /no/run: does not exist"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(capsys, words, text):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.fullmatch(text, err.strip())


def test_an_error_of_the_users_is_1(capsys):
    assert cli.main(["train", "dmo"]) == 1
    assert "did you mean 'demo'?" in capsys.readouterr().err


def test_a_defect_is_70_with_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr("hsadml_dist.jobs.prepare.RECIPES", 3)
    assert cli.main(["recipes", "list"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, _, _ in cli.COMMANDS])
def test_every_command_has_help(capsys, name):
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: hsadml {name}" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "hsadml_dist.launch.cli", "recipes", "list"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
