import os
import subprocess
import sys

import pytest

from hsadml_dist.launch import cli

MODULE = [sys.executable, "-m", "hsadml_dist.launch.cli"]
HEAVY = {"torch", "numpy", "matplotlib", "monai", "sklearn", "pydantic", "yaml", "submitit"}


def test_help_names_every_command_and_imports_none():
    code = (
        "import sys; from hsadml_dist.launch.cli import main; main(['--help']);"
        "print('LOADED', *[m for m in sys.modules if m.startswith('hsadml_dist.launch.cli.')], *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("LOADED")
    assert all(f" {name} " in text for name, _, _ in cli.COMMANDS)
    assert not HEAVY & set(loaded.split())
    assert not [name for name in loaded.split() if name.startswith("hsadml_dist.launch.cli.")]


def test_help_takes_less_than_0_4_cpu_seconds():
    code = (
        "import resource, runpy, sys; sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('hsadml_dist.launch.cli', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF); print(usage.ru_utime + usage.ru_stime)"
    )
    # The first call may compile the modules.
    seconds = [
        float(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
        )
        for _ in range(5)
    ]
    assert min(seconds) < 0.4, seconds


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["trian"], ["'trian'", "shards, train, submit", "'train'?"]),
        (["recipes", "lst"], ["'lst'", "list, show, copy", "'list'?"]),
        (["train"], ["RECIPE"]),
        (["train", "demo", "--nprocs", "2"], ["--nprocs", "--nproc"]),
        (["train", "demo", "--nproc", "two"], ["two"]),
        (["train", "demo", "--nproc", "0"], ["--nproc 0"]),
        (["evaluate"], ["run folder"]),
        (["metrics", "/no/run"], ["/no/run"]),
    ],
)
def test_usage_error_is_one_line_and_exit_code_2(capsys, words, facts):
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("hsadml: ") and message.count("\n") == 1
    assert all(fact in message for fact in facts)


def test_user_error_is_exit_code_1(capsys):
    assert cli.main(["train", "dmo"]) == 1
    assert "'demo'" in capsys.readouterr().err


def test_defect_is_exit_code_70_with_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr("hsadml_dist.jobs.prepare.RECIPES", 3)
    assert cli.main(["recipes", "list"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, _, _ in cli.COMMANDS])
def test_help_of_each_command_is_its_docstring(capsys, name):
    assert cli.main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"Usage: hsadml {name}" in printed
    assert "[default: False]" not in printed


def test_help_shows_numeric_defaults(capsys):
    assert cli.main(["shards", "build", "--help"]) == 0
    assert capsys.readouterr().out.count("[default: 0]") == 1


def test_closed_stdout_is_not_an_error():
    reader, writer = os.pipe()
    os.close(reader)
    words = [*MODULE, "recipes", "list"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
