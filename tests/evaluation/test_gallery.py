"""Which slices are judged, and which are referred to."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hsadml_dist.checkpoint.layout import TrainingProgress
from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.data.index import ShardIndex, load_index
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation import gallery as references
from hsadml_dist.evaluation import ood as nearness
from hsadml_dist.evaluation.gallery import load_gallery, make_split
from hsadml_dist.evaluation.model_loading import open_inference
from hsadml_dist.run.folder import RunFolder
from tests.data.test_index import make_index, make_row

# Labels 0, 1, 2, 0, ...; folds 0, 0, 0, 1, 1, 2: fold 0 alone holds class 2.
FOLDS = (0, 0, 0, 1, 1, 2)


@pytest.fixture
def index() -> ShardIndex:
    return make_index(
        [make_row(number, fold=fold, label=(0, 1, 2, 0, 1, 1)[number]) for number, fold in enumerate(FOLDS)]
    )


def test_an_open_set_is_judged_whole(index: ShardIndex) -> None:
    split = make_split(Path("s"), index, 0, [0, 1])
    assert (split.test, split.references, split.left_out) == ((0, 1, 2), (5,), 0)
    assert split.labels(split.test).tolist() == [0, 1, 2]
    assert split.people((0, 5)).persons == ["p0", "p2"]


def test_a_closed_set_leaves_out_what_training_does_not_know_and_counts_it(index: ShardIndex) -> None:
    split = make_split(Path("s"), index, 0, [0], closed=True)
    assert (split.test, split.references, split.left_out) == ((0, 1), (3, 4, 5), 1)
    split = make_split(Path("s"), index, 0, [0, 1], closed=True)
    assert (split.test, split.references, split.left_out) == ((1,), (5,), 2)


def test_nothing_to_refer_to_and_nothing_to_judge_are_refused(index: ShardIndex) -> None:
    with pytest.raises(DataError, match="no training fold is left"):
        make_split(Path("s"), index, 0, [0, 1, 2])
    with pytest.raises(DataError, match="fold 1 holds no slice of a class that the training folds know"):
        make_split(Path("s"), make_index([make_row(number) for number in range(2)]), 1, [1], closed=True)


@pytest.fixture
def of(run):
    """Open the run anew and return its references and what was told."""

    def references_and_told(shards=None):
        told = []
        return load_gallery(open_inference(run), shards, told.append, lambda done, total: None), told

    return references_and_told


def same(one, other):
    assert one.table.keys == other.table.keys
    np.testing.assert_array_equal(one.table.emb_ND, other.table.emb_ND)
    np.testing.assert_array_equal(one.looks.look_NG, other.looks.look_NG)
    assert (one.embedding_threshold, one.look_threshold, one.size) == (
        other.embedding_threshold,
        other.look_threshold,
        other.size,
    )


def test_they_are_the_training_folds_with_their_thresholds(of, shards, run):
    found, told = of()
    index = load_index(shards)
    assert found.table.keys == tuple(row.key for row in index.samples if row.fold != 0)
    assert found.size == index.size
    assert found.embedding_threshold == nearness.embedding_threshold(found.table.emb_ND, found.table.persons)
    assert 0 < found.embedding_threshold < 2 and 0 < found.look_threshold < 10
    assert told == [f"embedding 24 training cases; kept in {run / 'reference.npz'}"]


def test_they_are_made_once_and_then_answer_without_shards(of, shards):
    made, _ = of()
    shutil.rmtree(shards)
    kept, told = of()
    same(made, kept)
    assert told == []


@pytest.mark.parametrize("damage", [lambda data: data[:-500], lambda data: b"", lambda data: b"no zip at all"])
def test_a_damaged_file_is_made_anew(of, run, damage):
    made, _ = of()
    path = run / "reference.npz"
    path.write_bytes(damage(path.read_bytes()))
    again, told = of()
    same(made, again)
    assert len(told) == 1
    assert of()[1] == []


def test_a_file_of_other_weights_is_made_anew_whatever_their_name(of, run):
    made, _ = of()
    folder = RunFolder(run)
    state = load_inference_state(folder)
    shutil.rmtree(folder.checkpoints)
    groups = {
        "model": {name: value * 1.5 for name, value in state.model.items()},
        "centres": {"weight": state.centres},
    }
    progress = TrainingProgress(
        step=2, consumed=24, seed=0, fingerprint="", data_digest=state.data_digest, world_size=1
    )
    save_checkpoint(folder, folder.attempt(1), TrainingState(groups=groups, progress=progress))
    again, told = of()
    assert len(told) == 1
    assert again.table.checkpoint == made.table.checkpoint
    assert (again.table.emb_ND != made.table.emb_ND).all()


def test_a_folder_that_cannot_be_written_is_told_and_answers(of, run, monkeypatch):
    def refuse(path, columns):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(references, "save_columns", refuse)
    found, told = of()
    assert len(found.table) == 24
    assert told[1] == f"{run / 'reference.npz'}: cannot be kept (Permission denied); the next call makes it again"


def test_other_shards_are_refused_even_if_references_are_kept(of, other_shards, shards):
    of()
    with pytest.raises(DataError, match="other shards than its"):
        of(other_shards)
    moved = shards.rename(shards.with_name("moved"))
    assert of(moved)[1] == []
