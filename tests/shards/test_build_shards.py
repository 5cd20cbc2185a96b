import hashlib
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.index import load_index
from hsadml_dist.data.sample import SampleMeta
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.build import BuildOptions, build_shards, sort_classes
from hsadml_dist.shards.source import ImageSource
from hsadml_dist.shards.sources.figshare import FigshareSource
from hsadml_dist.shards.sources.folders import FoldersSource
from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource
from hsadml_dist.shards.sources.table import TableSource
from hsadml_dist.shards.summary import summarise
from hsadml_dist.shards.verify import verify_shards
from tests.data.image_bytes import foreign_files, make_tiff
from tests.shards.matlab_files import write_folds, write_slice

OPTIONS = BuildOptions(samples_per_shard=4, size=32, folds=4)


def quiet(done: int, total: int) -> None:
    del done, total


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(table, key, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "shards"
    report = build_shards(TableSource(table=table), out, OPTIONS, key, 1, quiet)
    return out, report


def test_build_verifies_and_loads(built):
    out, report = built
    assert verify_shards(out) == ()
    assert load_index(out) == report.index
    assert report.index.classes == ("glioma", "meningioma", "pituitary")
    assert (len(report.index), report.index.folds, report.index.split_unit) == (30, 4, "person")
    assert not list(out.parent.glob(".*"))
    assert not list(out.glob(".*"))


def test_build_bytes_do_not_depend_on_workers(built, table, key, tmp_path):
    out, _ = built
    build_shards(TableSource(table=table), tmp_path / "two", OPTIONS, key, 2, quiet)
    assert contents(tmp_path / "two") == contents(out)


def test_build_with_other_key_changes_only_hashes(built, table, tmp_path):
    from hsadml_dist.shards.pseudonyms import load_or_create_key

    _, report = built
    other = build_shards(
        TableSource(table=table), tmp_path / "o", OPTIONS, load_or_create_key(tmp_path / "key"), 1, quiet
    ).index
    assert not {row.key for row in other.samples} & {row.key for row in report.index.samples}
    assert not {row.person for row in other.samples} & {row.person for row in report.index.samples}
    assert [(row.sha256, row.fold) for row in other.samples] == [(row.sha256, row.fold) for row in report.index.samples]


def test_build_keeps_patients_in_one_fold(built):
    folds = defaultdict(set)
    for row in built[1].index.samples:
        folds[row.person].add(row.fold)
    assert len(folds) == 12
    assert all(len(own) == 1 for own in folds.values())


def test_build_writes_no_identifier_of_the_input(built, table):
    out, _ = built
    names = [b"SECRET", b"pictures", str(table.parent).encode(), b"list.csv", os.fsencode(table.parent.name)]
    for path in out.rglob("*"):
        content = path.read_bytes() + os.fsencode(path.name)
        assert not [name for name in names if name.lower() in content.lower()]
    assert b"SECRETEXIF" in (table.parent / "pictures" / "SECRETFILE-0-0.jpg").read_bytes()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The same 24 slices of 6 patients, 2 exams each, as original files, zipped files, a table, and class folders."""
    root = tmp_path_factory.mktemp("cohort")
    classes = ("meningioma", "glioma", "pituitary")
    for folder in ("mat/SECRETWARD", "pictures"):
        (root / folder).mkdir(parents=True)
    lines = []
    for number in range(1, 25):
        person, exam = (number - 1) // 4, (number - 1) // 2
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48)).astype(np.uint8)
        class_name = classes[person % 3]
        write_slice(
            root / "mat" / "SECRETWARD" / f"{number}.mat", pixels, label=1 + person % 3, pid=f"SECRETPID-{exam}"
        )
        Image.fromarray(pixels).save(root / "pictures" / f"{number}.png")
        part = root / "classes" / ("Training" if number % 4 else "Testing") / class_name
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(part / f"SECRETNAME-{person}-{number}.png")
        lines.append(f"{number},{class_name},SECRETPERSON-{person},SECRETPID-{exam}")
    write_folds(root / "mat" / "cvind.mat", [1 + (number - 1) // 2 % 5 for number in range(1, 3065)])
    (root / "persons.csv").write_text("\n".join(["index,class,person,exam", *lines]) + "\n")
    (root / "zips").mkdir()
    with zipfile.ZipFile(root / "zips" / "brainTumorDataPublic_1-766.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((root / "mat" / "SECRETWARD").iterdir()):
            archive.write(path, f"SECRETWARD/{path.name}")
    shutil.copy(root / "mat" / "cvind.mat", root / "zips")
    return root


def sources_of(root: Path) -> dict[str, ImageSource]:
    table = TableSource(table=root / "persons.csv", images=root / "pictures", columns={"file": "index"})
    return {
        "table": table,
        "files": FigshareSource(folder=root / "mat", persons=root / "persons.csv"),
        "zips": FigshareSource(folder=root / "zips", persons=root / "persons.csv"),
        "folders": FoldersSource(folder=root / "classes"),
    }


def test_build_from_table_files_and_zips_gives_equal_counts_and_folds(cohort, key, tmp_path):
    options = replace(OPTIONS, folds=3)
    made = {
        name: build_shards(source, tmp_path / name, options, key, 1, quiet).index
        for name, source in sources_of(cohort).items()
        if name != "folders"
    }
    counts = [
        {name: asdict(summarise(index))[name] for name in ("unit", "total", "classes", "folds")}
        for index in made.values()
    ]
    assert counts[0] == counts[1] == counts[2]
    assert (counts[0]["unit"], counts[0]["total"]["persons"], counts[0]["total"]["exams"]) == ("person", 6, 12)
    assert len({frozenset((row.person, row.exam, row.fold) for row in index.samples) for index in made.values()}) == 1
    assert contents(tmp_path / "files") == contents(tmp_path / "zips")
    assert "disjoint by exam only: 6 patients" in (tmp_path / "files" / "card.html").read_text()


def test_build_without_patients_states_the_smaller_unit(cohort, key, tmp_path):
    for source, unit in ((FigshareSource(folder=cohort / "mat"), "exam"), (sources_of(cohort)["folders"], "slice")):
        report = build_shards(source, tmp_path / unit, OPTIONS, key, 1, quiet)
        assert report.index.split_unit == unit
        assert json.loads((tmp_path / unit / "card.json").read_text())["unit"] == unit
        assert f"Split by {unit}. Patients are not known" in (tmp_path / unit / "card.html").read_text()
        assert verify_shards(tmp_path / unit) == ()


@pytest.mark.parametrize("name", ["table", "files", "zips", "folders"])
def test_build_writes_no_identifier_even_if_interrupted(cohort, key, tmp_path, name, monkeypatch):
    source = sources_of(cohort)[name]
    monkeypatch.setattr("hsadml_dist.shards.build.write_card", fail)
    with pytest.raises(ZeroDivisionError):
        build_shards(source, tmp_path / "out", OPTIONS, key, 1, quiet)
    monkeypatch.undo()
    cut = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(cut) > 6
    words = [b"SECRET", os.fsencode(cohort.name), b"persons.csv", b"pictures"]
    assert [path.name for path in cut if holds(path, words)] == []
    build_shards(source, tmp_path / "out", OPTIONS, key, 1, quiet)
    assert [path.name for path in (tmp_path / "out").iterdir() if holds(path, words)] == []


def fail(*_: object) -> None:
    raise ZeroDivisionError


def holds(path: Path, words: list[bytes]) -> bool:
    """Return whether the name or content of a file contains a word, in ASCII or UTF-16."""
    content = (path.read_bytes() + os.fsencode(path.name)).lower()
    return any(word.lower() in content or word.decode().lower().encode("utf-16-le") in content for word in words)


def test_build_offsets_locate_members(built, table):
    out, report = built
    row = next(row for row in report.index.samples if row.label == 1)
    content = (out / report.index.shards[row.shard].name).read_bytes()
    offset, size = row.members["json"]
    meta = SampleMeta.from_json(content[offset : offset + size])
    assert (meta.key, meta.class_name, meta.plane, meta.shape) == (row.key, "meningioma", "axial", (32, 32))
    offset, size = row.members["png"]
    (out.parent / "one.png").write_bytes(content[offset : offset + size])
    image = np.asarray(Image.open(out.parent / "one.png"))
    assert image.dtype == np.uint16 and image.shape == (32, 32) and len(np.unique(image)) > 256


def test_build_members_have_constant_owner_mode_and_time(built):
    out, report = built
    with tarfile.open(out / report.index.shards[0].name) as tar:
        infos = tar.getmembers()
    assert {(info.uname, info.gname, info.uid, info.gid, info.mtime, info.mode) for info in infos} == {
        ("hsadml", "hsadml", 0, 0, 0, 0o444)
    }
    keys = [info.name.split(".")[0] for info in infos]
    assert keys == [key for row in report.index.samples if row.shard == 0 for key in [row.key, row.key]]


def test_build_stores_masks_and_spacing(key, tmp_path):
    source = PhantomSource(patients=4, seed=0, size=32)
    report = build_shards(source, tmp_path / "p", OPTIONS, key, 1, quiet)
    assert verify_shards(tmp_path / "p") == ()
    assert all("mask.png" in row.members for row in report.index.samples)
    row = report.index.samples[0]
    offset, size = row.members["json"]
    content = (tmp_path / "p" / report.index.shards[row.shard].name).read_bytes()
    assert SampleMeta.from_json(content[offset : offset + size]).spacing_mm in {
        record.spacing_mm for record in source.list_records().records
    }


def test_build_does_not_overwrite_filled_folder(table, key, tmp_path):
    (tmp_path / "mine").write_text("dear")
    with pytest.raises(DataError, match="not empty"):
        build_shards(TableSource(table=table), tmp_path, OPTIONS, key, 1, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_build_into_empty_folder(table, key, tmp_path):
    (tmp_path / "out").mkdir()
    build_shards(TableSource(table=table), tmp_path / "out", OPTIONS, key, 1, quiet)
    assert verify_shards(tmp_path / "out") == ()


@pytest.mark.parametrize("workers", [1, 2])
def test_build_skips_bad_images_by_row(small_table, key, tmp_path, workers):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    lines = [f"{'bad.jpg' if n in (2, 5) else 'a.png'},x,{n}" for n in range(8)]
    source = TableSource(table=small_table("file,class,person", *lines))
    report = build_shards(source, tmp_path / "out", replace(OPTIONS, samples_per_shard=1), key, workers, quiet)
    assert {skip.where for skip in report.index.skipped} == {"row 3", "row 6"}
    assert all("its image" in skip.reason for skip in report.index.skipped)
    assert (len(report.index), len(report.index.shards)) == (6, 6)
    assert verify_shards(tmp_path / "out") == ()
    assert json.loads((tmp_path / "out" / "card.json").read_text())["skipped"][0]["where"] in {"row 3", "row 6"}


def test_build_counts_jpeg_masks_and_skips_several_pages(small_table, key, tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "m.jpg")
    (tmp_path / "p.tif").write_bytes(make_tiff([np.zeros((8, 8), np.uint8)] * 3))
    (tmp_path / "d.png").write_bytes(foreign_files()["DDS"])
    files = ["a.png", "a.png", "p.tif", "a.png", "d.png", "a.png"]
    lines = [f"{file},x,{n},{'m.jpg' if n % 2 else ''}" for n, file in enumerate(files)]
    source = TableSource(table=small_table("file,class,person,mask", *lines))
    report = build_shards(source, tmp_path / "out", replace(OPTIONS, samples_per_shard=1), key, 1, quiet)
    assert report.lossy_masks == 3
    assert {skip.where: "3 pages" in skip.reason for skip in report.index.skipped} == {"row 3": True, "row 5": False}
    assert verify_shards(tmp_path / "out") == ()


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (range(6), r"class x: .*row \d: its image .*, and 5 more"),
        ([0, 1], "class x: "),
        ([4], r"fold \d: .*row 5: .*--folds"),
    ],
)
def test_build_rejects_class_or_fold_without_usable_samples(small_table, key, tmp_path, bad, text):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    lines = [f"{'bad.jpg' if n in bad else 'a.png'},{'x' if n < 2 else 'y'},{min(n, 4)}" for n in range(6)]
    if list(bad) == [4]:
        lines = lines[:5]
    source = TableSource(table=small_table("file,class,person", *lines))
    with pytest.raises(DataError, match=text) as caught:
        build_shards(source, tmp_path / "out", replace(OPTIONS, folds=4 if len(lines) == 6 else 5), key, 1, quiet)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_build_reports_patients_in_two_classes_by_row(small_table, key, tmp_path):
    source = TableSource(table=small_table("file,class,person", "a.png,x,1", "a.png,y,1", "a.png,x,2"))
    report = build_shards(source, tmp_path / "out", replace(OPTIONS, folds=2), key, 1, quiet)
    assert report.mixed_class_patients == ("row 1 (x) and row 2 (y)",)


@pytest.mark.parametrize(
    ("options", "workers", "text"),
    [
        (replace(OPTIONS, size=4), 1, "--size 4: .*allowed: 8 ... 4096"),
        (replace(OPTIONS, size=9999), 1, "--size 9999"),
        (replace(OPTIONS, samples_per_shard=0), 1, "--samples-per-shard 0"),
        (replace(OPTIONS, folds=1), 1, "--folds 1: .*allowed: 2"),
        (replace(OPTIONS, split_by="persons"), 1, r"--split-by 'persons': .*allowed: person, exam, slice.*'person'"),
        (OPTIONS, 0, "--workers 0"),
    ],
)
def test_build_rejects_options_out_of_range(table, key, tmp_path, options, workers, text):
    with pytest.raises(UsageError, match=text):
        build_shards(TableSource(table=table), tmp_path / "out", options, key, workers, quiet)
    assert list(tmp_path.iterdir()) == []


def test_sort_classes_by_value_or_alphabet():
    assert sort_classes(["b", "a", "b"]) == ("a", "b")
    assert sort_classes(["10", "9", "2"]) == ("2", "9", "10")
    assert sort_classes(["10", "9", "x"]) == ("10", "9", "x")


def test_build_files_are_readable_by_others(built):
    for path in built[0].iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444
    header = json.loads((built[0] / "index.json").read_text())
    assert (header["schema"], header["dtype"], header["spatial_dims"]) == (2, "uint16", 2)
