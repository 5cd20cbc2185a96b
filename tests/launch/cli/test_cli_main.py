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


def cpu_seconds(code):
    """Return the CPU time of a new interpreter that runs ``code``."""
    code += "\nimport resource; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def test_help_costs_little_more_than_its_libraries():
    """The machine may be slow, so the time is compared with that of the libraries, by turns."""
    help_code = "from hsadml_dist.launch.cli import main; main(['--help'])"
    library_code = "import cyclopts, cyclopts.help, rich.console, rich.markdown, rich.table"
    pairs = [(cpu_seconds(help_code), cpu_seconds(library_code)) for _ in range(5)]
    help_seconds, library_seconds = (min(times) for times in zip(*pairs, strict=True))
    assert help_seconds < 2 * library_seconds, pairs


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
