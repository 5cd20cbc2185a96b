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
from hsadml_dist.launch.cli.cmd_predict import COLUMNS, RESEARCH_ONLY, PredictionRow, as_csv, path_text
from tests.data.image_bytes import foreign_files, make_tiff, png_of


@pytest.fixture
def scans(tiny_shards, tmp_path, monkeypatch):
    """A folder with a training case, a held-out slice, a coloured image, a DICOM and a damaged file."""
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


def test_predict_classifies_or_reports_every_file(run, scans, capsys):
    assert cli.main(["predict", str(run), str(scans), "--json"]) == 1
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    rows = {row["path"]: row for row in result["images"]}
    assert list(rows) == [f"scans/{name}" for name in ("IM0001", "cut.png", "known.png", "more/new.png", "photo.jpg")]
    assert "DICOM" in rows["scans/IM0001"]["error"] and "decode" in rows["scans/cut.png"]["error"]
    known, new, photo = (rows[f"scans/{name}"] for name in ("known.png", "more/new.png", "photo.jpg"))
    assert (known["is_training_case"], new["is_training_case"], photo["is_training_case"]) == (True, False, False)
    assert known["nearest"][0]["cosine"] == pytest.approx(1) and len(known["nearest"]) == 3
    assert sum(new["probabilities"].values()) == pytest.approx(1)
    assert new["probability"] == new["probabilities"][new["class"]] == max(new["probabilities"].values())
    assert "look" in photo["far_by"] and "colour" in photo["warnings"][-1]
    assert (result["unreadable"], result["checkpoint"]) == (2, "step-00000004.attempt-0001")
    assert printed.err.count(RESEARCH_ONLY) == 1
    assert "scans/labels.csv" in printed.err


def test_predict_stores_the_training_cases_and_reuses_them(run, scans, capsys):
    assert cli.main(["predict", str(run), "scans/more/new.png"]) == 0
    first = capsys.readouterr()
    stored = (run / "reference.npz").stat().st_ino
    assert cli.main(["predict", str(run), "scans/more/new.png", "scans/cut.png"]) == 1
    second = capsys.readouterr()
    assert (run / "reference.npz").stat().st_ino == stored, "it was written again"
    assert second.out.splitlines()[0].split() == first.out.splitlines()[0].split()
    assert [line.split()[0] for line in second.out.splitlines() if "decode" in line] == ["scans/cut.png"]
    assert second.out.splitlines()[-1].startswith("2 files: 1 classified, 0 ")


def test_csv_has_a_header_and_a_row_per_file(run, scans, capsys):
    assert cli.main(["predict", str(run), str(scans), "--csv", "a.csv"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("a.csv: 5 files: 3 classified, ") and out.count("\n") == 1
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    assert [row["path"] for row in rows][:3] == ["scans/IM0001", "scans/cut.png", "scans/known.png"]
    assert [bool(row["error"]) for row in rows] == [True, True, False, False, False]
    assert [bool(row["class"]) for row in rows] == [False, False, True, True, True]
    assert float(rows[2]["nearest_1_cosine"]) == pytest.approx(1)
    assert "Research" not in Path("a.csv").read_text()


def test_hostile_files_get_a_row_and_the_others_a_class(run, scans, capsys):
    hostile = {f"{kind}.png": foreign_files()[kind] for kind in ("DDS", "BLP", "PSD", "EPS")}
    hostile |= {"bomb.png": png_of(50_000, 50_000, 8, 0, b"")}
    hostile |= {"cut.tif": make_tiff([np.zeros((9, 9), np.uint8)] * 3)[:-400]}
    for name, content in hostile.items():
        (scans / name).write_bytes(content)
    paths = [f"scans/{name}" for name in (*hostile, "more/new.png")]
    assert cli.main(["predict", str(run), *paths, "--csv", "a.csv"]) == 1
    assert capsys.readouterr().out.startswith("a.csv: 7 files: 1 classified, ")
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    assert [row["path"] for row in rows] == paths
    assert [(bool(row["class"]), bool(row["error"])) for row in rows] == [(False, True)] * 6 + [(True, False)]
    assert "50000 x 50000" in rows[4]["error"] and "cut short" in rows[5]["error"]


def test_only_unreadable_files_are_a_user_error(run, scans, capsys):
    assert cli.main(["predict", str(run), "scans/cut.png"]) == 1
    assert "1 file: 0 classified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], 'Command "predict" parameter PATH '),
        (["/no/such.png"], "PATH /no/such.png: "),
        (["scans", "--csv", "no/a.csv"], "--csv no/a.csv: "),
    ],
)
def test_usage_errors_are_reported_before_any_work(run, scans, capsys, words, text):
    assert cli.main(["predict", str(run), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hsadml: {text}") and err.count("\n") == 1
    assert not (run / "reference.npz").exists()


def test_names_with_commas_and_invalid_utf8_survive_in_csv(tmp_path):
    path = path_text(Path("a,\udcff.png"))
    assert path == "a,\\udcff.png"
    rows = list(csv.reader(io.StringIO(as_csv([PredictionRow(path=path, error='so, "bad"')]))))
    assert rows == [list(COLUMNS), [path, *[""] * (len(COLUMNS) - 2), 'so, "bad"']]
