"""The record of a training: what it reveals, when it is written, and what a missing key or file means."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.contents import load_contents
from hsadml_dist.data.index import load_index
from hsadml_dist.evaluation.trained_overlap import TrainedOverlap, UnknownReason, measure_overlap
from hsadml_dist.evaluation.training_lineage import find_record, save_training_record, training_positions
from hsadml_dist.evaluation.training_record import (
    HASH_DIGITS,
    TrainingRecord,
    build_record,
    identify,
    join_records,
    read_record,
    write_record,
)
from hsadml_dist.launch import cli
from hsadml_dist.run.folder import RunFolder
from tests.evaluation.picture_tables import Pictures, plain_values

KEY, OTHER_KEY = bytes(range(32)), bytes(32)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(trained / "run", tmp_path / "run"))


def test_record_reveals_nothing_without_its_key(run: RunFolder, trained: Path) -> None:
    text, values = run.trained_on.read_text(), json.loads(run.trained_on.read_text())
    assert stat.S_IMODE(run.trained_on_key.stat().st_mode) == 0o600
    for value in plain_values(trained / "shards"):
        assert value not in text
        for plain in (value, f"pixels {value}", f"persons {value}"):
            assert hashlib.sha256(plain.encode()).hexdigest()[:HASH_DIGITS] not in text
    index = load_index(trained / "shards")
    assert len(values["hashes"]["pixels"]) == len(index.outside_folds([0])) == 24
    assert len(values["hashes"]["persons"]) == 8
    assert all(found == sorted(found) for found in values["hashes"].values()), "their order says nothing either"


def test_records_of_two_runs_on_the_same_shards_have_nothing_in_common(
    run: RunFolder, trained: Path, tmp_path: Path
) -> None:
    other = RunFolder(tmp_path / "other")
    other.path.mkdir()
    save_training_record(other, load_recipe(run.config).recipe, load_index(trained / "shards"))
    one, two = (json.loads(folder.trained_on.read_text()) for folder in (run, other))
    assert one["digest"] == two["digest"]
    for kind in ("pixels", "sources", "persons"):
        assert not set(one["hashes"][kind]) & set(two["hashes"][kind])


def test_record_is_written_once_and_again_only_for_other_data(run: RunFolder, trained: Path) -> None:
    recipe, index = load_recipe(run.config).recipe, load_index(trained / "shards")
    before = run.trained_on.stat().st_ino, run.trained_on_key.read_bytes()
    record = save_training_record(run, recipe, index)
    assert (run.trained_on.stat().st_ino, run.trained_on_key.read_bytes()) == before
    assert record == read_record(run)
    save_training_record(run, recipe, replace(index, digest="0" * 64))
    assert read_record(run) is not None and json.loads(run.trained_on.read_text())["digest"] == "0" * 64


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9}', '{"version": 1}'])
def test_damaged_record_is_reported_and_made_again(
    run: RunFolder, trained: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    intact, recipe = read_record(run), load_recipe(run.config).recipe
    run.trained_on.write_text(text)
    assert read_record(run) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert find_record(run, recipe, load_index(trained / "shards").digest) == intact


def test_record_without_its_key_is_unknown_and_keeps_no_new_key(
    run: RunFolder, trained: Path, tmp_path: Path, id_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Pictures(folder=tmp_path / "t").build(tmp_path / "b", "--folds", "3", "--seed", "5", id_key=id_key)
    run.trained_on_key.unlink()
    run.config.write_text(run.config.read_text().replace(str(trained / "shards"), str(tmp_path / "gone")))
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.path), "--shards", str(shards), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["trained_slices"], result["trained_persons"], result["trained_unknown"]) == (None, None, ["no_key"])
    assert cli.main(["evaluate", str(run.path), "--shards", str(trained / "shards")]) == 0, "their digest is known"
    assert not run.trained_on_key.exists()
    run.trained_on_key.write_bytes(OTHER_KEY)
    record = read_record(run)
    assert record is not None and record.key is None and record.classes is not None


def records(trained: Path) -> tuple[TrainingRecord, TrainingRecord]:
    """Return the records of trainings on fold 1 and on fold 2, under one key."""
    index = load_index(trained / "shards")
    contents = load_contents(trained / "shards", index)
    one, two = (build_record(identify(index, contents, index.in_folds([fold])), None, KEY) for fold in (1, 2))
    return one, two


def test_joined_records_hold_both_trainings(trained: Path) -> None:
    index, (one, two) = load_index(trained / "shards"), records(trained)
    joined = join_records(one, two)
    contents = load_contents(trained / "shards", index)
    for fold, expected in ((0, (0, 0)), (1, (12, 4)), (2, (12, 4))):
        found = measure_overlap(joined, identify(index, contents, index.in_folds([fold])))
        assert (found.slices, found.persons, found.unknown) == (*expected, ())
    for before in (None, replace(two, key=OTHER_KEY)):
        partial = join_records(one, before)
        found = measure_overlap(partial, identify(index, contents, index.in_folds([0])))
        assert found == TrainedOverlap(slices=None, persons=None, unknown=(UnknownReason.PARTIAL_RECORD,))
        assert measure_overlap(partial, identify(index, contents, index.in_folds([1]))).slices == 12


def test_record_round_trip(trained: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record = join_records(*records(trained))
    write_record(run, record)
    assert read_record(run) == record


def test_generated_patients_of_another_seed_are_other_patients(tmp_path: Path, id_key: Path) -> None:
    indexes = []
    for seed in ("0", "1"):
        out = tmp_path / seed
        words = ["shards", "build", "phantom", "6", "--out", str(out), "--seed", seed, "--size", "16", "--folds", "3"]
        assert cli.main([*words, "--workers", "1", "--id-key", str(id_key)]) == 0
        indexes.append(load_index(out))
    assert {row.person for row in indexes[0].samples} == {row.person for row in indexes[1].samples}
    first, second = (
        identify(index, load_contents(tmp_path / seed, index), range(len(index)))
        for seed, index in zip(("0", "1"), indexes, strict=True)
    )
    record = build_record(first, None, KEY)
    assert measure_overlap(record, first).persons == 6
    assert measure_overlap(record, second) == TrainedOverlap(slices=0, persons=0)


def test_training_positions_are_all_but_the_held_out_folds(run: RunFolder, trained: Path) -> None:
    recipe, index = load_recipe(run.config).recipe, load_index(trained / "shards")
    assert training_positions(recipe, index) == index.outside_folds([0])
    held_out = replace(recipe, data=replace(recipe.data, val_fold=2))
    assert training_positions(held_out, index) == index.in_folds([1])
