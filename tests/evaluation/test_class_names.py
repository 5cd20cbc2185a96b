"""Class names of shards against those that a run has learnt: compared by name and order, or mapped by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hsadml_dist.data.index import load_index, write_index
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.class_names import learnt_classes, map_classes, require_same_classes
from hsadml_dist.evaluation.model_loading import open_inference, open_shards
from hsadml_dist.jobs.prepare import prepare_run
from hsadml_dist.launch import cli
from hsadml_dist.run.history import merged_events
from tests.conftest import Ranks
from tests.evaluation.picture_tables import CLASSES, SETTINGS, Pictures

RENAMED = ("Glioma", "Meningioma", "Pituitary")


@pytest.fixture
def picture_run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "run", tmp_path / "run")


def rename_classes(shards: Path, *names: str) -> Path:
    """Rename the classes in the header alone, which keeps the digest."""
    write_index(shards, replace(load_index(shards), classes=names))
    return shards


def test_renamed_classes_are_refused_with_both_lists_or_mapped(
    picture_run: Path, tmp_path: Path, id_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = Pictures(folder=tmp_path / "t", classes=RENAMED)
    shards = pictures.build(tmp_path / "b", "--folds", "3", id_key=id_key)
    words = ["evaluate", str(picture_run), "--shards", str(shards)]
    capsys.readouterr()
    assert cli.main(words) == 1
    message = capsys.readouterr().err
    assert ", ".join(RENAMED) in message and ", ".join(CLASSES) in message and "--map-class Glioma=" in message
    assert message.count("\n") == 1
    mapping = [word for pair in zip(RENAMED, CLASSES, strict=True) for word in ("--map-class", "=".join(pair))]
    assert cli.main([*words, *mapping, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["classes"], result["trained_slices"]) == (list(CLASSES), 0)
    assert cli.main([*words, *mapping, "--fold", "1"]) == 1, "the pictures are still those of the training"


def test_reordered_classes_are_refused_or_matched_by_name(
    picture_run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = (2, 0, 1)  # new label to old one
    shards = shutil.copytree(trained / "shards", tmp_path / "reordered")
    index = load_index(shards)
    inference = open_inference(picture_run)
    classes = tuple(CLASSES[old] for old in order)
    samples = tuple(replace(row, label=order.index(row.label)) for row in index.samples)
    reordered = replace(index, classes=classes, samples=samples)
    with pytest.raises(DataError, match=r"pituitary, glioma, meningioma.*glioma, meningioma, pituitary.*another order"):
        require_same_classes(reordered, CLASSES, "there")
    assert map_classes(reordered, CLASSES, {"glioma": "glioma"}, "there").samples == index.samples
    assert open_shards(inference, shards)[1].classes == CLASSES


def test_classes_renamed_under_the_same_digest_are_refused(picture_run: Path, trained: Path, tmp_path: Path) -> None:
    shards = rename_classes(shutil.copytree(trained / "shards", tmp_path / "shards"), *RENAMED)
    inference = open_inference(picture_run)
    assert load_index(shards).digest == inference.trained_on
    with pytest.raises(DataError, match=r"Glioma, .*glioma, "):
        open_shards(inference, shards)


def test_training_is_not_resumed_with_renamed_classes(
    picture_run: Path, trained: Path, tmp_path: Path, ranks: Ranks
) -> None:
    shards = rename_classes(shutil.copytree(trained / "shards", tmp_path / "shards"), *RENAMED)
    folder = prepare_run("demo", [f"data.shards={shards}", *SETTINGS], picture_run, False, 1)
    ranks("training_ranks.py", 1, f"{folder} resumed", preload=("hsadml_dist.data.transforms:load_monai",))
    (failed,) = [row for row in merged_events(picture_run) if row["event"] == "failed"]
    assert failed["exit_code"] == 1 and "Glioma" in failed["reason"] and "glioma" in failed["reason"]


def test_learnt_classes_are_found_in_record_result_or_shards(picture_run: Path, trained: Path, tmp_path: Path) -> None:
    inference = open_inference(picture_run)
    known = (inference.run, inference.recipe, inference.trained_on)
    assert learnt_classes(*known) == CLASSES
    (picture_run / "trained_on.json").unlink()
    (picture_run / "result.json").write_text(json.dumps({"classes": ["x"], "data_digest": inference.trained_on}))
    assert learnt_classes(*known) == ("x",)
    (picture_run / "result.json").unlink()
    assert learnt_classes(*known) == CLASSES
    elsewhere = replace(inference.recipe, data=replace(inference.recipe.data, shards=str(tmp_path / "gone")))
    assert learnt_classes(inference.run, elsewhere, inference.trained_on) is None


def test_shards_of_a_run_without_names_are_compared_by_number(
    picture_run: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("trained_on.json", "result.json"):
        (picture_run / name).unlink()
    inference = open_inference(picture_run)
    recipe = replace(inference.recipe, data=replace(inference.recipe.data, shards=str(tmp_path / "gone")))
    nameless = replace(inference, recipe=recipe)
    shards = rename_classes(shutil.copytree(trained / "shards", tmp_path / "shards"), *RENAMED)
    assert open_shards(nameless, shards)[1].classes == RENAMED
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(DataError, match="--map-class"):
        open_shards(nameless, shards, {"Glioma": "glioma"})
    with pytest.raises(DataError, match=r"4 classes.* 3"):
        open_shards(nameless, rename_classes(shards, *RENAMED, "fourth"))


@pytest.mark.parametrize(
    ("class_map", "facts"),
    [
        ({"glioma": "gliom"}, ("gliom", "'glioma'", "meningioma")),
        ({"gliom": "glioma"}, ("gliom", "'glioma'")),
        ({"pituitary": "adenoma"}, ("pituitary", "'adenoma'")),
    ],
)
def test_map_classes_refuses_unknown_names(trained: Path, class_map: dict[str, str], facts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        map_classes(load_index(trained / "shards"), CLASSES, class_map, "there")
    assert all(fact in str(caught.value) for fact in facts)


def test_several_classes_may_map_to_one(trained: Path) -> None:
    index = load_index(trained / "shards")
    mapped = map_classes(index, ("other", "glioma"), {"meningioma": "other", "pituitary": "other"}, "there")
    assert mapped.classes == ("other", "glioma")
    assert [row.label for row in mapped.samples] == [1 if row.label == 0 else 0 for row in index.samples]
