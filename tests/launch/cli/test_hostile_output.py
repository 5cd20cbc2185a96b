"""Foreign names on every way to the terminal and into a spreadsheet: as text, never as markup, escapes or formulas."""

import csv
import io
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.launch import cli
from hsadml_dist.launch.cli.cmd_doctor import format_results
from hsadml_dist.launch.cli.terminal import align_columns, display_path, echo, echo_file, echo_json
from hsadml_dist.launch.doctor import CheckResult, CheckStatus
from hsadml_dist.run.folder import RunFolder
from tests.launch.cli.terminal_output import read_terminal

ESCAPE = "\x1b[2J\x1b]0;title\x07"
CLASSES = ("astro [/]", "glioma [grade ii]", "=cmd()", f"$\\frac$ 胶质瘤 {ESCAPE}")
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture(scope="module")
def hostile_shards(tmp_path_factory):
    """Shards of four classes with hostile names, in two folds."""
    from hsadml_dist.shards.build import BuildOptions, build_shards
    from hsadml_dist.shards.pseudonyms import load_or_create_key
    from hsadml_dist.shards.sources.table import TableSource

    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append([f"{number}.png", CLASSES[number % 4], f"{ESCAPE}person {number}"])
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "class", "person"], *rows])
    source = TableSource(table=folder / "list.csv", images=None, columns={}, where={})
    options = BuildOptions(folds=2, samples_per_shard=8, size=16)
    key = load_or_create_key(folder / "id.key")
    build_shards(source, folder / "shards", options, key, 1, lambda done, total: None)
    return folder / "shards"


@pytest.fixture(scope="module")
def hostile_run(hostile_shards, tmp_path_factory, train_to_the_end):
    """A training on these shards, with its evaluation and its report."""
    run = tmp_path_factory.mktemp("run") / "run"
    settings = {
        "data.shards": hostile_shards,
        "data.image_size": 16,
        "model.name": "resnet_gn_tiny",
        "model.embedding_dim": 8,
        "train.steps": 2,
        "train.global_batch": 4,
        "run.tensorboard": "false",
    }
    train_to_the_end(run, *(f"{key}={value}" for key, value in settings.items()), nproc=1)
    return run


def assert_printable(text):
    found = CONTROL.search(text)
    assert found is None, repr(text[max(0, found.start() - 40) : found.end() + 40])


def on_terminal(program, **environment):
    """Run a Python program whose stdout is a terminal; return what the terminal got."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "200", **environment}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    shown = read_terminal(ours)
    assert process.wait() == 0, shown
    return shown.decode().replace("\r\n", "\n")


def test_info_shows_class_names_in_brackets(hostile_shards, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["shards", "info", str(hostile_shards)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CLASSES[:3])
    assert r"$\frac$ 胶质瘤 \x1b[2J\x1b]0;title\x07" in out
    assert_printable(out)


def test_training_with_hostile_class_names_ends_with_a_report(hostile_run):
    folder = RunFolder(hostile_run)
    for path in (folder.report, folder.model_card, *hostile_run.rglob("*.log")):
        assert_printable(path.read_text())
    page = folder.report.read_text()
    assert all(name in page for name in ("astro [/]", "glioma [grade ii]", "=cmd()", "$\\frac$ 胶质瘤 \\x1b[2J"))
    assert "Glyph" not in "".join(path.read_text() for path in hostile_run.rglob("*.log"))


def test_evaluate_and_predict_print_and_write_names_as_text(hostile_run, hostile_shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("=1+1.png", f"{ESCAPE}.png", "a\nhsadml: all is well.png", "[bold].png", "-2.png"):
        shutil.copy(hostile_shards.parent / "0.png", scans / name)
    (scans / f"broken{ESCAPE}.png").write_bytes(b"x")
    assert cli.main(["evaluate", str(hostile_run)]) == 0
    monkeypatch.chdir(scans)
    files = sorted(os.listdir(scans))
    assert cli.main(["predict", str(hostile_run), *(f"./{name}" for name in files)]) == 1
    bare = [name for name in files if not name.startswith("-")]
    assert cli.main(["predict", str(hostile_run), *bare, "--csv", str(tmp_path / "a.csv")]) == 1
    printed = capsys.readouterr()
    assert_printable(printed.out + printed.err)
    assert "\nhsadml: all is well.png" not in printed.out
    assert r"a\nhsadml: all is well.png" in printed.out
    rows = list(csv.reader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8"))))
    cells = [cell for row in rows for cell in row]
    assert "'=1+1.png" in cells
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r", "\n")]
    assert all(re.fullmatch(r"-[\d.]+", cell) for cell in cells if cell.startswith("-"))


def test_status_and_errors_show_names_of_folders_as_text(opened_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"run {ESCAPE}\nhsadml: [bold] all is well"
    shutil.copytree(opened_run, tmp_path / name)
    assert cli.main(["status", name]) == 0
    assert cli.main(["cancel", name]) == 0
    for words in (["train", f"{ESCAPE}.yaml"], [ESCAPE], ["shards", "info", ESCAPE], ["evaluate", ESCAPE]):
        assert cli.main(words) in (1, 2)
    for words in (["train", "demo", f"data.{ESCAPE}=1"], ["shards", "verify", name], ["profile", "show", ESCAPE]):
        assert cli.main(words) in (1, 2)
    printed = capsys.readouterr()
    assert_printable(printed.out + printed.err)
    assert "\nhsadml: [bold] all is well" not in printed.out + printed.err
    assert r"\x1b[2J" in printed.out and r"\x1b[2J" in printed.err


def test_table_drawn_in_place_shows_names_of_folders_as_text(opened_run, tmp_path):
    run = tmp_path / "run \x1b[2J\x07"
    shutil.copytree(opened_run, run)
    program = (
        "from hsadml_dist.launch.cli import cmd_status as c; from pathlib import Path;"
        f"runs = c.select_runs([Path({str(run)!r})]);"
        "c._draw_in_place(iter([c.Snapshot(c.read_status(runs, None, 0.0), None, 0.0)]))"
    )
    shown = on_terminal(program)
    assert r"run \x1b[2J\x07" in shown
    assert "\x1b[2J" not in shown and "\x07" not in shown


def test_log_is_escaped_on_a_terminal_only(tmp_path):
    (tmp_path / "log").write_bytes(f"ü {ESCAPE}\tx\n".encode() + b"\xff\n")
    program = (
        "from hsadml_dist.launch.cli.cmd_logs import LogPrinter; from pathlib import Path;"
        f"LogPrinter().print_from(Path({str(tmp_path / 'log')!r}), 0)"
    )
    assert on_terminal(program).splitlines()[0].startswith(r"ü \x1b[2J\x1b]0;title\x07")
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert done.stdout == (tmp_path / "log").read_bytes()


def test_checks_of_doctor_are_shown_as_text_and_coloured_by_us_alone():
    found = f"file system {ESCAPE} on\nnode"
    results = [CheckResult(group="disk", name=f"a{ESCAPE}", verdict=CheckStatus.FAIL, found=found, todo=ESCAPE)]
    assert_printable(format_results(results, 100))
    assert CONTROL.findall(format_results(results, 100, colour=True)) == ["\x1b", "\x1b"]


def test_echo_prints_each_argument_on_one_line(capsys):
    echo("a\nb", ESCAPE)
    echo(ESCAPE, error=True)
    echo_json({"a": "\x7f"})
    echo_file("a\x1b\n")
    printed = capsys.readouterr()
    assert printed.out == 'a\\nb\n\\x1b[2J\\x1b]0;title\\x07\n{"a": "\\u007f"}\na\x1b\n'
    assert printed.err == "\\x1b[2J\\x1b]0;title\\x07\n"


def test_echo_on_a_terminal_without_unicode_escapes_instead_of_failing(tmp_path):
    program = "from hsadml_dist.launch.cli.terminal import echo; echo('胶质瘤 ü')"
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environ, check=True)
    assert done.stdout == b"\\u80f6\\u8d28\\u7624 \\xfc\n"


def test_columns_are_aligned_by_what_is_shown(tmp_path, monkeypatch):
    assert align_columns([("a\x1b", "1"), ("b", "2")], left=(0,)) == [r"a\x1b  1", "b      2"]
    monkeypatch.chdir(tmp_path)
    assert display_path(Path("a\x1b")) == r"a\x1b"
