"""Each person a class, from images to a verdict: two real processes, each with its share of the class centres."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hsadml_dist.data.index import ShardIndex, load_index
from hsadml_dist.evaluation.evaluate import evaluate_run
from hsadml_dist.evaluation.model_loading import embed_slices, open_inference, open_training_shards
from hsadml_dist.evaluation.result import read_predictions
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
    "evaluation.resamples=100",
    "loss.layout=sharded",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two ranks on generated patients, split by slice."""
    folder = tmp_path_factory.mktemp("identity")
    build = ("shards", "build", "phantom", str(PERSONS), "--size", "32", "--split-by", "slice", "--seed", "3")
    hsadml(*build, "--out", folder / "shards", "--id-key", folder / "id.key")
    hsadml("train", "identity", f"data.shards={folder / 'shards'}", *SETTINGS, "--nproc", "2", "--run", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def index(run: Path) -> ShardIndex:
    """The shards as they lie on disk: with the classes of the source."""
    return load_index(run.parent / "shards")


def test_the_network_tells_persons_apart(run: Path, index: ShardIndex) -> None:
    result = json.loads((run / "result.json").read_text())
    persons = sorted({str(row.person) for row in index.samples})
    assert len(persons) == PERSONS
    assert (result["label"], result["classes"], result["split_unit"]) == ("person", persons, "slice")
    known = {row.person for row in index.samples if row.fold != 0}
    tested = [row for row in index.samples if row.fold == 0 and row.person in known]
    assert (result["slices"], result["world_size"]) == (len(tested), 2)
    assert result["left_out"] == sum(row.fold == 0 for row in index.samples) - len(tested)
    said = read_predictions(run / "predictions.json")
    assert [said.classes[label] for label in said.label_N] == list(said.persons) == [row.person for row in tested]
    assert said.probability_NC.shape == (len(tested), PERSONS)


def test_one_process_reads_the_shares_of_both_and_comes_to_the_same_verdict(run: Path) -> None:
    said = json.loads((run / "result.json").read_text())
    assert evaluate_run(run).result.to_dict() == said | {"world_size": 1}


def test_embeddings_are_written_with_persons_as_classes(run: Path, index: ShardIndex) -> None:
    inference = open_inference(run)
    folder, found = open_training_shards(inference, None)
    table, _ = embed_slices(inference, folder, found, range(len(index)), lambda done, total: None)
    assert [table.classes[label] for label in table.label_N] == list(table.persons)
    assert inference.weights.centre_CD.shape == (PERSONS, 8)
