"""Evaluation of a run folder against slow loops, and on real ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import load_index, samples_table, table_digest, write_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import CheckpointError, ConfigError, DataError
from hsadml_dist.evaluation.evaluate import evaluate_run
from hsadml_dist.evaluation.result import read_predictions
from hsadml_dist.model_factory import build_network
from hsadml_dist.report.run_report import evaluate_and_report
from hsadml_dist.run.folder import RunFolder
from tests.conftest import MONAI


def slow_metrics(run: Path, shards: Path, fold: int) -> dict[str, float]:
    """Embed one slice at a time and compare every pair."""
    recipe, state = load_recipe(RunFolder(run).config).recipe, load_inference_state(RunFolder(run))
    network = build_network(recipe).eval()
    network.load_state_dict(state.model)
    index = load_index(shards)
    reader, prepare = ShardReader(shards, index), Preprocessing(recipe.data.image_size)
    with torch.no_grad():
        rows = [network(prepare(reader.image(position))[None])[0].double() for position in range(len(index))]
    unit = [torch.nn.functional.normalize(row, dim=0) for row in rows]
    centres = torch.nn.functional.normalize(state.centres.double(), dim=1)
    test = [position for position, row in enumerate(index.samples) if row.fold == fold]
    others = [position for position, row in enumerate(index.samples) if row.fold != fold]
    label = [row.label for row in index.samples]
    nearest = [max(others, key=lambda other: float(unit[one] @ unit[other])) for one in test]
    head = [int((centres @ unit[one]).argmax()) for one in test]
    return {
        "knn_accuracy": float(np.mean([label[a] == label[b] for a, b in zip(test, nearest, strict=True)])),
        "head_accuracy": float(np.mean([label[a] == b for a, b in zip(test, head, strict=True)])),
    }


def test_evaluate_run_equals_slow_loops_and_is_stored(run: Path, shards: Path) -> None:
    evaluation = evaluate_run(run)
    result = evaluation.result.to_dict()
    assert evaluation.stored
    assert result == json.loads((run / "result.json").read_text())
    expected = slow_metrics(run, shards, fold=0)
    assert {name: result[name] for name in expected} == expected
    assert (result["split_unit"], result["fold"], result["chosen_by"]) == ("person", 0, "last step")
    assert (result["persons"], result["slices"], result["reference_slices"], result["shared_persons"]) == (6, 24, 24, 0)
    assert result["checkpoint"] == {"name": "step-00000002.attempt-0001", "step": 2, "attempt": 1}
    assert result["data_digest"] == load_index(shards).digest
    assert (result["trained_slices"], result["trained_persons"], result["trained_unknown"]) == (0, 0, [])
    assert result["intervals"]["interval_unit"] == "person"
    assert sum(map(sum, result["confusion"])) == 24
    predictions = read_predictions(run / "predictions.json")
    assert result["methods"].keys() == predictions.predicted.keys() >= {"knn", "head", "raw_pixels", "low_level", "svm"}
    for method, metrics in result["methods"].items():
        assert metrics["accuracy"] == predictions.correct(method).mean()
    assert result["recipe"]["loss"]["name"] == result["loss"]


def test_report_of_an_evaluation_shows_its_accuracy(run: Path) -> None:
    evaluated = evaluate_and_report(run)
    result, page = evaluated.result, (run / "report.html").read_text()
    assert evaluated.report == run / "report.html"
    assert f"{result['knn_accuracy']:.1%}" in page and "Training" in page
    assert (run / "MODEL_CARD.md").exists()


def test_evaluate_run_stores_results_on_moved_shards_but_not_on_other_shards(
    run: Path, shards: Path, other_shards: Path
) -> None:
    moved = shards.rename(shards.with_name("moved"))
    own = evaluate_run(run, shards=moved).result.to_dict()
    assert json.loads((run / "result.json").read_text()) == own
    evaluation = evaluate_run(run, shards=other_shards, fold=1)
    foreign = evaluation.result.to_dict()
    assert not evaluation.stored
    assert evaluate_and_report(run, other_shards, 1).report is None
    assert json.loads((run / "result.json").read_text()) == own
    assert foreign["data_digest"] != own["data_digest"]
    assert (foreign["fold"], foreign["persons"], foreign["shared_persons"]) == (1, None, None)
    assert foreign["intervals"]["interval_unit"] == "slice"


def test_evaluate_run_refuses_a_training_fold(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"fold: 1 .*allowed: 0$"):
        evaluate_run(run, fold=1)
    assert not (run / "result.json").exists()


def test_evaluate_run_refuses_unknown_fold_and_missing_checkpoint(run: Path, other_shards: Path) -> None:
    with pytest.raises(DataError, match="fold 9"):
        evaluate_run(run, shards=other_shards, fold=9)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="checkpoint"):
        evaluate_run(run)


def test_evaluate_training_on_several_ranks_equals_one_process(run: Path, ranks: Callable[..., list[Any]]) -> None:
    world = 3  # 5 batches each of queries and gallery, so the ranks hold different numbers of slices
    single = evaluate_run(run).result.to_dict()
    found = ranks("evaluation/evaluate_ranks.py", world, str(run), preload=MONAI)
    assert found == [single | {"world_size": world}] * world
    assert json.loads((run / "result.json").read_text()) == single | {"world_size": world}


def test_evaluation_names_classes_that_only_one_side_has(run: Path, shards: Path, tmp_path: Path) -> None:
    """Outside the test fold class 2 becomes class 0, inside it class 1 does."""
    index = load_index(shards)
    renamed = {(True, 1): 0, (False, 2): 0}
    samples = tuple(replace(row, label=renamed.get((row.fold == 0, row.label), row.label)) for row in index.samples)
    shutil.copytree(shards, tmp_path / "renamed")
    write_index(tmp_path / "renamed", replace(index, samples=samples, digest=table_digest(samples_table(samples))))
    result = evaluate_run(run, tmp_path / "renamed").result
    assert (result.balanced_classes, result.classes_without_test) == (2, ("meningioma",))
    assert (result.classes_without_gallery, result.majority_class) == (("pituitary",), "glioma")
    tested = [row.label for row in samples if row.fold == 0]
    assert result.majority_accuracy == tested.count(0) / len(tested)
    assert result.confusion is not None and sum(result.confusion[2]) == tested.count(2) and not result.confusion[2][2]
