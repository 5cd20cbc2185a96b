"""A verdict from a run folder, against slow loops, and from real ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import CheckpointError, ConfigError, DataError
from hsadml_dist.evaluation.evaluate import evaluate_run
from hsadml_dist.evaluation.predictions import read
from hsadml_dist.model_factory import build_network
from hsadml_dist.run.folder import RunFolder

RANKS = Path(__file__).with_name("verdict_ranks.py")


def slow_figures(run: Path, shards: Path, fold: int) -> dict[str, float]:
    """Embed one slice at a time and look at every pair."""
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


def test_the_verdict_is_that_of_slow_loops_and_lies_in_the_run_folder(run: Path, shards: Path) -> None:
    result = evaluate_run(run)
    assert result == json.loads((run / "result.json").read_text())
    expected = slow_figures(run, shards, fold=0)
    assert {name: result[name] for name in expected} == expected
    assert (result["split_unit"], result["fold"], result["chosen_by"]) == ("person", 0, "last step")
    assert (result["persons"], result["slices"], result["reference_slices"], result["shared_persons"]) == (6, 24, 24, 0)
    assert result["checkpoint"] == {"name": "step-00000002.attempt-0001", "step": 2, "attempt": 1}
    assert result["data_digest"] == load_index(shards).digest
    assert result["intervals"]["interval_unit"] == "person"
    assert sum(map(sum, result["confusion"])) == 24
    said = read(run / "predictions.json")
    assert result["methods"].keys() == said.predicted.keys() >= {"knn", "head", "raw_pixels", "low_level", "svm"}
    for method, figures in result["methods"].items():
        assert figures["accuracy"] == said.correct(method).mean()
    assert result["recipe"]["loss"]["name"] == result["loss"]
    page = (run / "report.html").read_text()
    assert f"{result['knn_accuracy']:.1%}" in page
    assert "Training" in page


def test_moved_shards_are_the_runs_own_and_others_are_not(run: Path, shards: Path, other_shards: Path) -> None:
    moved = shards.rename(shards.with_name("moved"))
    own = evaluate_run(run, shards=moved)
    assert json.loads((run / "result.json").read_text()) == own
    foreign = evaluate_run(run, shards=other_shards, fold=1)
    assert json.loads((run / "result.json").read_text()) == own
    assert foreign["data_digest"] != own["data_digest"]
    assert (foreign["fold"], foreign["persons"], foreign["shared_persons"]) == (1, None, None)
    assert foreign["intervals"]["interval_unit"] == "slice"


def test_a_fold_that_was_trained_on_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"fold: 1 was read in training by this run.*allowed: 0$"):
        evaluate_run(run, fold=1)
    assert not (run / "result.json").exists()


def test_unusable_runs_and_shards_are_said(run: Path, other_shards: Path) -> None:
    with pytest.raises(DataError, match="fold 9: these shards have no such fold"):
        evaluate_run(run, shards=other_shards, fold=9)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        evaluate_run(run)


def test_ranks_come_to_the_verdict_of_one_process(run: Path, run_ranks: Callable[[Path, int, Path], None]) -> None:
    world = 3  # 5 batches each of test and reference slices: no rank holds as many as another
    alone = evaluate_run(run)
    run_ranks(RANKS, world, run)
    for rank in range(world):
        assert json.loads((run / f"rank-{rank}.json").read_text()) == alone | {"world_size": world}
    assert json.loads((run / "result.json").read_text()) == alone | {"world_size": world}
