"""``hsadml evaluate`` on the same pictures in another build: trained slices are counted, refused or marked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hsadml_dist import evaluate
from hsadml_dist.data.index import load_index
from hsadml_dist.errors import TrainedDataError
from hsadml_dist.launch import cli
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events
from tests.conftest import Train
from tests.evaluation.picture_tables import SETTINGS, Pictures, replace_in_place, slow_overlap, without_contents

Output = pytest.CaptureFixture[str]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose shards are those of ``trained``."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def refusal(run: Path, shards: Path, output: Output, *options: str) -> str:
    """Run ``hsadml evaluate``, which must refuse; return its line."""
    output.readouterr()
    assert cli.main(["evaluate", str(run), "--shards", str(shards), *options]) == 1
    printed = output.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def result_on(run: Path, output: Output, *options: str | Path) -> dict[str, object]:
    output.readouterr()
    assert cli.main(["evaluate", str(run), "--json", *map(str, options)]) == 0
    return json.loads(output.readouterr().out)


def counts(result: dict[str, object]) -> tuple[object, object, object]:
    return result["trained_slices"], result["trained_persons"], result["trained_unknown"]


def require_refused_and_marked(run: Path, trained: Path, shards: Path, output: Output, fold: int = 0) -> None:
    """Require that the fold is refused by default, and else counted and marked, as a slow comparison finds."""
    seen, slices, persons, patients = slow_overlap(trained / "shards", 0, shards, fold)
    assert seen > 0
    before = {path.name for path in run.iterdir()}
    message = refusal(run, shards, output, "--fold", str(fold))
    assert f" {seen} of {slices} slices" in message and f" {persons} of {patients} patients" in message
    assert str(shards) in message and "--allow-trained" in message and "allow_trained=True" in message
    result = result_on(run, output, "--shards", shards, "--fold", fold, "--allow-trained")
    assert (result["trained_slices"], result["trained_persons"]) == (seen, persons)
    assert cli.main(["evaluate", str(run), "--shards", str(shards), "--fold", str(fold), "--allow-trained"]) == 0
    lines = output.readouterr().out.splitlines()
    assert any(f"slices {seen} of {slices}, " in line for line in lines)
    figures = [line for line in lines[1:] if "%" in line and "intervals" not in line and "warning" not in line]
    assert len(figures) >= 4 and all(line.endswith("(trained slices)") for line in figures)
    assert not any("report" in line for line in lines)
    assert {path.name for path in run.iterdir()} == before


def test_own_shards_have_no_trained_slices_and_the_report_is_named(run: Path, output: Output) -> None:
    assert counts(result_on(run, output)) == (0, 0, [])
    assert cli.main(["evaluate", str(run)]) == 0
    lines = output.readouterr().out.splitlines()
    assert any("slices 0 of 12, patients 0 of 4" in line for line in lines)
    assert lines[-1].split() == ["report:", str(run / "report.html")]
    assert "slices 0 of 12, patients 0 of 4" in (run / "report.html").read_text()
    assert "slices 0 of 12, patients 0 of 4" in (run / "MODEL_CARD.md").read_text()


def test_rebuild_with_another_seed_is_recognised(
    run: Path, trained: Path, tmp_path: Path, id_key: Path, output: Output
) -> None:
    shards = Pictures(folder=tmp_path / "t").build(tmp_path / "b", "--folds", "3", "--seed", "5", id_key=id_key)
    for fold in range(3):
        require_refused_and_marked(run, trained, shards, output, fold)


def test_rebuild_with_other_folds_is_recognised(
    run: Path, trained: Path, tmp_path: Path, id_key: Path, output: Output
) -> None:
    shards = Pictures(folder=tmp_path / "t").build(tmp_path / "b", "--folds", "4", id_key=id_key)
    require_refused_and_marked(run, trained, shards, output, fold=3)


def test_rebuild_with_another_id_key_is_recognised(run: Path, trained: Path, tmp_path: Path, output: Output) -> None:
    shards = Pictures(folder=tmp_path / "t").build(tmp_path / "b", "--folds", "3", id_key=tmp_path / "other.key")
    for fold in range(3):
        seen, *_ = slow_overlap(trained / "shards", 0, shards, fold)
        if seen:
            require_refused_and_marked(run, trained, shards, output, fold)
            result = result_on(run, output, "--shards", shards, "--fold", fold, "--allow-trained")
            assert result["trained_unknown"] == ["other_id_key"]


def test_rebuild_with_renamed_patients_is_recognised(
    run: Path, trained: Path, tmp_path: Path, id_key: Path, output: Output
) -> None:
    pictures = Pictures(folder=tmp_path / "t", person="case {}")
    require_refused_and_marked(run, trained, pictures.build(tmp_path / "b", "--folds", "3", id_key=id_key), output, 1)


def test_rebuild_in_place_is_recognised(run: Path, trained: Path, tmp_path: Path, id_key: Path, output: Output) -> None:
    own = shutil.copytree(trained / "shards", tmp_path / "own")
    config = RunFolder(run).config
    config.write_text(config.read_text().replace(str(trained / "shards"), str(own)))
    pictures = Pictures(folder=tmp_path / "t")
    replace_in_place(own, lambda out: pictures.build(out, "--folds", "3", "--seed", "5", id_key=id_key))
    output.readouterr()
    seen, slices, *_ = slow_overlap(trained / "shards", 0, own, 0)
    assert cli.main(["evaluate", str(run)]) == 1
    assert f" {seen} of {slices} slices" in output.readouterr().err
    with pytest.raises(TrainedDataError, match=f" {seen} of {slices} slices"):
        evaluate(run)
    assert evaluate(run, allow_trained=True)["trained_slices"] == seen


def test_rebuild_at_another_size_is_recognised_by_its_source(
    run: Path, tmp_path: Path, id_key: Path, output: Output
) -> None:
    pictures = Pictures(folder=tmp_path / "t")
    shards = pictures.build(tmp_path / "b", "--folds", "3", "--size", "48", id_key=id_key)
    assert counts(result_on(run, output, "--shards", shards)) == (0, 0, [])
    assert " 12 of 12 slices and 4 of 4 patients" in refusal(run, shards, output, "--fold", "1")


def test_other_size_without_content_hashes_is_unknown_except_for_patients(
    run: Path, tmp_path: Path, id_key: Path, output: Output
) -> None:
    pictures = Pictures(folder=tmp_path / "t")
    shards = without_contents(pictures.build(tmp_path / "b", "--folds", "3", "--size", "48", id_key=id_key))
    assert counts(result_on(run, output, "--shards", shards)) == (None, None, ["other_size", "other_id_key"])
    assert " 4 of 4 patients" in refusal(run, shards, output, "--fold", "1")


def test_other_pictures_are_evaluated(run: Path, tmp_path: Path, id_key: Path, output: Output) -> None:
    pictures = Pictures(folder=tmp_path / "t", seed=1, person="new patient {}")
    shards = pictures.build(tmp_path / "b", "--folds", "3", id_key=id_key)
    assert counts(result_on(run, output, "--shards", shards)) == (0, 0, [])


def test_other_pictures_of_the_same_patients_are_refused(
    run: Path, tmp_path: Path, id_key: Path, output: Output
) -> None:
    shards = Pictures(folder=tmp_path / "t", seed=1).build(tmp_path / "b", "--folds", "3", id_key=id_key)
    assert " 4 of 4 patients" in refusal(run, shards, output, "--fold", "1")
    result = result_on(run, output, "--shards", shards, "--fold", 1, "--allow-trained")
    assert counts(result) == (0, 4, [])


@pytest.mark.parametrize(("named", "reason"), [(True, "other_id_key"), (False, "no_patient_ids")])
def test_patients_are_unknown_under_another_key_or_without_names(
    run: Path, tmp_path: Path, output: Output, named: bool, reason: str
) -> None:
    pictures = Pictures(folder=tmp_path / "t", seed=1, named=named)
    shards = pictures.build(tmp_path / "b", "--folds", "3", id_key=tmp_path / "other.key")
    assert counts(result_on(run, output, "--shards", shards)) == (0, None, [reason])
    assert cli.main(["evaluate", str(run), "--shards", str(shards)]) == 0
    assert "slices 0 of 12, patients unknown (" in output.readouterr().out


def test_shards_of_an_older_version_are_compared_by_reading_the_images(
    run: Path, trained: Path, tmp_path: Path, output: Output
) -> None:
    pictures = Pictures(folder=tmp_path / "t")
    shards = without_contents(pictures.build(tmp_path / "b", "--folds", "3", id_key=tmp_path / "other.key"))
    require_refused_and_marked(run, trained, shards, output, fold=1)


def test_training_on_shards_of_an_older_version_is_compared_while_they_exist(
    trained: Path, tmp_path: Path, id_key: Path, train_to_the_end: Train, output: Output
) -> None:
    old = without_contents(Pictures(folder=tmp_path / "t").build(tmp_path / "shards", "--folds", "3", id_key=id_key))
    train_to_the_end(tmp_path / "run", f"data.shards={old}", *SETTINGS, "evaluation.at_end=false", nproc=1)
    record = tmp_path / "run" / "trained_on.json"
    assert json.loads(record.read_text())["hashes"].keys() == {"files", "persons"}
    new = Pictures(folder=tmp_path / "t2", seed=1, person="new {}").build(
        tmp_path / "new", "--folds", "3", id_key=id_key
    )
    moved = shutil.copytree(tmp_path / "run", tmp_path / "moved")
    old.rename(tmp_path / "away")
    assert counts(result_on(moved, output, "--shards", new)) == (None, None, ["no_content_hashes", "other_id_key"])
    other = tmp_path / "other.key"
    again = Pictures(folder=tmp_path / "t").build(tmp_path / "again", "--folds", "3", id_key=other)
    seen, slices, *_ = slow_overlap(trained / "shards", 0, again, 1)
    message = refusal(moved, again, output, "--fold", "1")
    assert f" {seen} of {slices} slices" in message, "by their PNG files, of the same encoder"
    (tmp_path / "away").rename(old)
    assert counts(result_on(tmp_path / "run", output, "--shards", new)) == (0, None, ["other_id_key"])
    # The pixels are read once: the record holds them from now on.
    shutil.rmtree(old)
    require_refused_and_marked(
        tmp_path / "run", trained, Pictures(folder=tmp_path / "t").build(old, "--folds", "3", id_key=other), output, 1
    )


def test_run_of_an_older_version_gets_its_record_from_its_shards(
    run: Path, trained: Path, tmp_path: Path, id_key: Path, output: Output
) -> None:
    shards = Pictures(folder=tmp_path / "t").build(tmp_path / "b", "--folds", "3", "--seed", "5", id_key=id_key)
    without = shutil.copytree(run, tmp_path / "without")
    for folder in (run, without):
        (folder / "trained_on.json").unlink()
        (folder / "trained_on.key").unlink()
    seen, slices, *_ = slow_overlap(trained / "shards", 0, shards, 0)
    assert f" {seen} of {slices} slices" in refusal(run, shards, output)
    assert (run / "trained_on.json").exists()
    config = RunFolder(without).config
    config.write_text(config.read_text().replace(str(trained / "shards"), str(tmp_path / "gone")))
    assert counts(result_on(without, output, "--shards", shards)) == (None, None, ["no_record"])
    # Its own shards are recognised by their digest, in any location.
    assert counts(result_on(without, output, "--shards", trained / "shards")) == (0, 0, [])


def test_images_in_two_folds_are_refused_at_the_end_of_the_training_unless_allowed(
    tmp_path: Path, id_key: Path, train_to_the_end: Train, output: Output
) -> None:
    pictures = Pictures(folder=tmp_path / "t", copies={3: 12, 20: 33, 1: 2})
    shards = pictures.build(tmp_path / "shards", "--folds", "3", id_key=id_key)
    repeated, slices, persons, patients = slow_overlap(shards, 0, shards, 0)
    assert 0 < repeated < slices
    run = tmp_path / "run"
    train_to_the_end(run, f"data.shards={shards}", *SETTINGS, nproc=2)
    events = merged_events(run)
    (refused,) = [row for row in events if row["event"] == "evaluation_refused"]
    assert f" {repeated} of {slices} slices" in refused["reason"] and "evaluation.allow_trained" in refused["reason"]
    assert events[-1]["event"] == "finished" and not RunFolder(run).result.exists()
    output.readouterr()
    assert cli.main(["evaluate", str(run)]) == 1
    train_to_the_end(run, f"data.shards={shards}", *SETTINGS, "evaluation.allow_trained=true", nproc=2)
    result = json.loads(RunFolder(run).result.read_text())
    assert (result["trained_slices"], result["trained_persons"]) == (repeated, persons)
    page = RunFolder(run).report.read_text()
    assert f"slices {repeated} of {slices}, patients {persons} of {patients}" in page
    captions = [part.partition("</caption>")[0] for part in page.split("<caption>")[1:]]
    assert len(captions) > 5 and all(caption.endswith("(trained slices)") for caption in captions)
    assert page.count("<figcaption>(trained slices)</figcaption>") == page.count("<figure><img")
    assert "(trained slices)" in RunFolder(run).model_card.read_text()
    assert cli.main(["evaluate", str(run)]) == 0, "the recipe allows it"


def test_folds_that_share_patients_are_a_control_and_not_refused(
    tmp_path: Path, id_key: Path, train_to_the_end: Train, output: Output
) -> None:
    pictures = Pictures(folder=tmp_path / "t")
    shards = pictures.build(tmp_path / "shards", "--folds", "3", "--split-by", "slice", id_key=id_key)
    train_to_the_end(tmp_path / "run", f"data.shards={shards}", *SETTINGS, nproc=1)
    tested = {row.person for row in load_index(shards).samples if row.fold == 0}
    known = {row.person for row in load_index(shards).samples if row.fold != 0}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert counts(result) == (0, len(tested & known), [])
    assert "(trained patients)" in (tmp_path / "run" / "report.html").read_text()
    # The same pictures split by patient are no control of this run.
    strict = pictures.build(tmp_path / "strict", "--folds", "3", id_key=id_key)
    refusal(tmp_path / "run", strict, output)


def test_weights_of_another_run_bring_its_training_along(
    run: Path, trained: Path, tmp_path: Path, train_to_the_end: Train, output: Output
) -> None:
    (weights,) = run.glob("checkpoints/*/model.safetensors")
    settings = (f"data.shards={trained / 'shards'}", "data.fold=1", f"model.init_from={weights}", *SETTINGS)
    train_to_the_end(tmp_path / "second", *settings, nproc=1)
    (refused,) = [row for row in merged_events(tmp_path / "second") if row["event"] == "evaluation_refused"]
    assert " 12 of 12 slices and 4 of 4 patients" in refused["reason"]
    (run / "trained_on.key").unlink()
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(trained / "shards"), "/gone"))
    train_to_the_end(tmp_path / "third", *settings, nproc=1)
    assert counts(json.loads((tmp_path / "third" / "result.json").read_text())) == (None, None, ["partial_record"])


@pytest.fixture
def output(capsys: Output) -> Output:
    return capsys
