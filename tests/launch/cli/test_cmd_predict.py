import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.launch import cli
from hsadml_dist.launch.cli.cmd_predict import COLUMNS, RESEARCH_ONLY, PredictionRow, as_csv, printable


@pytest.fixture
def scans(tiny_shards, tmp_path, monkeypatch):
    """A folder of a training case, a held-out slice, a photograph (of sorts), a DICOM and a damaged file."""
    monkeypatch.chdir(tmp_path)
    index = load_index(tiny_shards)
    reader, folder = ShardReader(tiny_shards, index), tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    for name, positions in (("known.png", index.outside_folds([0])), ("more/new.png", index.in_folds([0]))):
        Image.fromarray(reader.image(positions[0])).save(folder / name)
    colours = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(colours).save(folder / "photo.jpg")
    (folder / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(300))
    (folder / "cut.png").write_bytes((folder / "known.png").read_bytes()[:300])
    (folder / "labels.csv").write_text("x")
    return Path("scans")


@pytest.fixture
def run(opened_run, tmp_path):
    return shutil.copytree(opened_run, tmp_path / "run")


def test_every_file_is_answered_or_told_and_the_exit_code_says_so(run, scans, capsys):
    assert cli.main(["predict", str(run), str(scans), "--json"]) == 1
    said = capsys.readouterr()
    result = json.loads(said.out)
    rows = {row["path"]: row for row in result["images"]}
    assert list(rows) == [f"scans/{name}" for name in ("IM0001", "cut.png", "known.png", "more/new.png", "photo.jpg")]
    assert "DICOM" in rows["scans/IM0001"]["error"] and "cannot be decoded" in rows["scans/cut.png"]["error"]
    known, new, photo = (rows[f"scans/{name}"] for name in ("known.png", "more/new.png", "photo.jpg"))
    assert (known["is_training_case"], new["is_training_case"], photo["is_training_case"]) == (True, False, False)
    assert known["nearest"][0]["cosine"] == pytest.approx(1) and len(known["nearest"]) == 3
    assert sum(new["probabilities"].values()) == pytest.approx(1)
    assert new["probability"] == new["probabilities"][new["class"]] == max(new["probabilities"].values())
    assert "look" in photo["far_by"] and photo["warnings"][-1] == "coloured: its luminance is read"
    assert (result["unreadable"], result["checkpoint"]) == (2, "step-00000004.attempt-0001")
    assert said.err.count(RESEARCH_ONLY) == 1
    assert "left out, no images by their names: 1 file (scans/labels.csv)" in said.err


def test_lines_say_the_same_and_a_second_call_starts_from_what_was_kept(run, scans, capsys):
    assert cli.main(["predict", str(run), "scans/more/new.png"]) == 0
    first = capsys.readouterr()
    assert "reference.npz" in first.err
    assert cli.main(["predict", str(run), "scans/more/new.png", "scans/cut.png"]) == 1
    second = capsys.readouterr()
    assert "reference.npz" not in second.err
    assert second.out.splitlines()[0].split() == first.out.splitlines()[0].split()
    assert "scans/cut.png       not answered: its image cannot be decoded" in second.out
    assert second.out.endswith("2 files: 1 answered, 0 of them far from all training cases; 1 not read\n")


def test_a_csv_has_a_header_and_a_row_a_file(run, scans, capsys):
    assert cli.main(["predict", str(run), str(scans), "--csv", "a.csv"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("a.csv: 5 files: 3 answered, ") and out.count("\n") == 1
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    assert [row["path"] for row in rows][:3] == ["scans/IM0001", "scans/cut.png", "scans/known.png"]
    assert [bool(row["error"]) for row in rows] == [True, True, False, False, False]
    assert [bool(row["class"]) for row in rows] == [False, False, True, True, True]
    assert float(rows[2]["nearest_1_cosine"]) == pytest.approx(1)
    assert "Research" not in Path("a.csv").read_text()


def test_only_damaged_files_are_no_defect(run, scans, capsys):
    assert cli.main(["predict", str(run), "scans/cut.png"]) == 1
    assert "1 file: 0 answered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "predict: name at least one image file or folder"),
        (["/no/such.png"], "PATH /no/such.png: does not exist"),
        (["scans", "--csv", "no/a.csv"], "--csv no/a.csv: the folder no does not exist"),
    ],
)
def test_a_wrong_command_line_is_found_before_any_work(run, scans, capsys, words, text):
    assert cli.main(["predict", str(run), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hsadml: {text}") and err.count("\n") == 1
    assert not (run / "reference.npz").exists()


def test_names_that_are_no_utf8_or_hold_a_comma_survive(tmp_path):
    path = printable(Path("a,\udcff.png"))
    assert path == "a,\\udcff.png"
    rows = list(csv.reader(io.StringIO(as_csv([PredictionRow(path=path, error='so, "bad"')]))))
    assert rows == [list(COLUMNS), [path, *[""] * (len(COLUMNS) - 2), 'so, "bad"']]
