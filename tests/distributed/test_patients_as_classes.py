"""Patients as classes, from images to an evaluation: two real processes, each with its shard of the class centres."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hsadml_dist.data.index import ShardIndex, load_index
from hsadml_dist.evaluation.evaluate import evaluate_run
from hsadml_dist.evaluation.model_loading import embed_slices, open_inference, open_training_shards
from hsadml_dist.evaluation.result import read_predictions
from tests.conftest import Train
from tests.distributed.training_runs import hsadml

PERSONS = 12
SETTINGS = (
    "model.name=resnet_gn_tiny",
    "model.embedding_dim=8",
    "data.image_size=32",
    "train.steps=6",
    "train.global_batch=12",
    "optim.warmup_steps=0",
    "checkpoint.every=3",
    "loss.layout=sharded",
)


@pytest.fixture(scope="module")
def run(train_to_the_end: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training of two ranks on generated patients, split by slice."""
    folder = tmp_path_factory.mktemp("identity")
    build = ("shards", "build", "phantom", str(PERSONS), "--size", "32", "--split-by", "slice", "--seed", "3")
    hsadml(*build, "--out", folder / "shards", "--id-key", folder / "id.key")
    train_to_the_end(folder / "run", f"data.shards={folder / 'shards'}", *SETTINGS, nproc=2, recipe="identity")
    return folder / "run"


@pytest.fixture(scope="module")
def index(run: Path) -> ShardIndex:
    """Index of the shards as stored, with the classes of the source."""
    return load_index(run.parent / "shards")


def test_result_has_patients_as_classes(run: Path, index: ShardIndex) -> None:
    result = json.loads((run / "result.json").read_text())
    persons = sorted({str(row.person) for row in index.samples})
    assert len(persons) == PERSONS
    assert (result["label"], result["classes"], result["split_unit"]) == ("person", persons, "slice")
    known = {row.person for row in index.samples if row.fold != 0}
    tested = [row for row in index.samples if row.fold == 0 and row.person in known]
    assert (result["slices"], result["world_size"]) == (len(tested), 2)
    assert result["left_out"] == sum(row.fold == 0 for row in index.samples) - len(tested)
    predictions = read_predictions(run / "predictions.json")
    assert list(predictions.persons) == [row.person for row in tested]
    assert [predictions.classes[label] for label in predictions.label_N] == list(predictions.persons)
    assert predictions.probability_NC.shape == (len(tested), PERSONS)


def test_one_process_reproduces_result_of_two_ranks(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert evaluate_run(run).result.to_dict() == result | {"world_size": 1}


def test_embeddings_have_patients_as_classes(run: Path, index: ShardIndex) -> None:
    inference = open_inference(run)
    folder, found = open_training_shards(inference, None)
    table, _ = embed_slices(inference, folder, found, range(len(index)), lambda done, total: None)
    assert [table.classes[label] for label in table.label_N] == list(table.persons)
    assert inference.weights.centre_CD.shape == (PERSONS, 8)
