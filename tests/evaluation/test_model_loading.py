"""Loading of weights and shards for inference, and tables of embeddings."""

import dataclasses
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from hsadml_dist.checkpoint.layout import read_progress
from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.config.yaml_loader import dump_recipe, load_recipe
from hsadml_dist.data.batch import Batch
from hsadml_dist.data.index import load_index, samples_table, table_digest, write_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation import model_loading as module
from hsadml_dist.evaluation.embed import embed, slice_batches
from hsadml_dist.evaluation.model_loading import (
    EmbeddingTable,
    chosen_by,
    embed_slices,
    load_weights,
    open_inference,
    open_shards,
    open_training_shards,
    save_columns,
)
from hsadml_dist.model_factory import build_network
from hsadml_dist.run.folder import RunFolder


def test_load_weights_returns_the_checkpoint_and_its_data_digest(run, shards):
    folder = RunFolder(run)
    weights, trained_on = load_weights(folder, load_recipe(folder.config).recipe, torch.device("cpu"))
    state = load_inference_state(folder)
    assert trained_on == load_index(shards).digest
    assert (weights.checkpoint.name, weights.checkpoint.step) == ("step-00000002.attempt-0001", 2)
    torch.testing.assert_close(dict(weights.model.state_dict()), state.model, rtol=0, atol=0)
    torch.testing.assert_close(weights.centre_CD, state.centres, rtol=0, atol=0)


def test_run_with_transforms_of_an_older_version_stays_readable(tmp_path, run):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    recipe = load_recipe(RunFolder(run).config).recipe
    flip = {"_target_": "monai.transforms.RandFlipd", "keys": ["image"]}
    dump_recipe(replace(recipe, data=replace(recipe.data, transforms=(flip,))), RunFolder(old).config)
    assert open_inference(old).recipe.data.transforms == (flip,)


def test_load_weights_returns_the_running_average_as_at_the_end_of_training(tmp_path, run, shards):
    plain = load_recipe(RunFolder(run).config).recipe
    recipe = replace(plain, optim=replace(plain.optim, ema_decay=0.5))
    learner = build_learner(recipe, build_network(recipe), 3, SoloComm(), 2)
    for step in (1, 2):
        image = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(step))
        learner.step(step, Batch(image=image, label=torch.arange(12) % 3, keys=("",) * 12))
    folder = RunFolder(tmp_path / "averaged")
    folder.attempt(1).path.mkdir(parents=True)
    progress = replace(read_progress(RunFolder(run).checkpoints / "step-00000002.attempt-0001"), fingerprint="")
    save_checkpoint(folder, folder.attempt(1), TrainingState(groups=learner.state(), progress=progress))
    weights, _ = load_weights(folder, recipe, torch.device("cpu"))
    evaluated, trained = dict(learner.engine.evaluation_model().state_dict()), dict(learner.engine.model.state_dict())
    torch.testing.assert_close(dict(weights.model.state_dict()), evaluated, rtol=0, atol=0)
    assert not any(torch.equal(value, trained[name]) for name, value in evaluated.items())
    assert (chosen_by(plain.optim.ema_decay), weights.chosen_by) == (
        "last step",
        "last step, its running average of weights",
    )


@pytest.fixture
def opened(run):
    return open_inference(run)


def silent(done, total):
    """Ignore progress."""


def test_inference_embed_equals_the_network_on_single_images(opened, shards):
    index = load_index(shards)
    reader, prepare = ShardReader(shards, index), Preprocessing(opened.recipe.data.image_size)
    images = [reader.image(position) for position in range(7)]  # a batch of 5 and one of 2
    found = opened.embed(images).emb_ND
    net = opened.weights.model.eval()
    with torch.no_grad():
        for row, image in zip(found, images, strict=True):
            torch.testing.assert_close(row, net(prepare(image)[None])[0], rtol=1e-5, atol=1e-6)


def test_embed_slices_is_bit_identical_to_evaluation(opened, shards):
    index, positions = load_index(shards), [40, 3, 4, 5, 6, 7, 8]
    batches = slice_batches(shards, index, positions, image_size=16, batch=5)
    expected = embed(opened.weights.model, batches, embedding_dim=8, device=torch.device("cpu"))
    table, thumbnails = embed_slices(opened, shards, index, positions, silent)
    np.testing.assert_array_equal(table.emb_ND, expected.emb_ND.numpy())
    np.testing.assert_array_equal(thumbnails, expected.thumbnail_NP)


def test_embed_slices_fills_all_columns_and_reports_progress(opened, shards):
    index, steps = load_index(shards), []
    table, _ = embed_slices(opened, shards, index, [1, 47], lambda done, total: steps.append((done, total)))
    rows = [index.samples[1], index.samples[47]]
    assert table.keys == tuple(row.key for row in rows)
    assert table.persons == tuple(row.person for row in rows)
    assert [*table.label_N, *table.fold_N] == [*(row.label for row in rows), *(row.fold for row in rows)]
    assert (table.classes, table.data_digest) == (index.classes, index.digest)
    assert steps == [(1, 2), (2, 2)]


def test_embedding_table_round_trip(opened, other_shards, tmp_path):
    table, _ = embed_slices(opened, other_shards, load_index(other_shards), range(3), silent)
    assert table.persons == ("", "", "")
    save_columns(tmp_path / "a.npz", table.columns())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as columns:
        found = EmbeddingTable.from_columns(columns)
    for field in dataclasses.fields(table):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(table, field.name))


def test_save_columns_keeps_the_old_file_if_writing_fails(tmp_path, monkeypatch):
    def half(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    save_columns(tmp_path / "a.npz", {"x": np.arange(3)})
    monkeypatch.setattr(module.np, "savez", half)
    with pytest.raises(OSError, match="No space"):
        save_columns(tmp_path / "a.npz", {"x": np.arange(4)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert len(np.load(tmp_path / "a.npz")["x"]) == 3


def test_run_with_patients_as_classes_opens_only_its_own_shards(opened, shards, other_shards, tmp_path):
    index = load_index(shards)
    rows = [dataclasses.replace(row, fold=position % 3) for position, row in enumerate(index.samples)]
    sliced = shutil.copytree(shards, tmp_path / "sliced")
    digest = table_digest(samples_table(rows))
    write_index(sliced, dataclasses.replace(index, split_unit="slice", samples=tuple(rows), digest=digest))
    recipe = dataclasses.replace(
        opened.recipe, data=dataclasses.replace(opened.recipe.data, label="person", shards=str(sliced))
    )
    centres = torch.ones(12, 8)
    weights = dataclasses.replace(opened.weights, centre_CD=centres)
    of_patients = dataclasses.replace(opened, recipe=recipe, weights=weights, trained_on=digest)
    folder, found = open_training_shards(of_patients, None)
    assert folder == sliced
    assert found.classes == tuple(sorted({row.person for row in rows}))
    table, _ = embed_slices(of_patients, folder, found, [0, 5], silent)
    assert [table.classes[label] for label in table.label_N] == [rows[0].person, rows[5].person]
    with pytest.raises(DataError, match="not the shards of the training"):
        open_shards(of_patients, other_shards)


def test_open_training_shards_refuses_other_shards(opened, shards, other_shards):
    assert open_training_shards(opened, None)[0] == shards
    assert open_shards(opened, other_shards)[0] == other_shards
    with pytest.raises(DataError, match=r"digest \w{16}.*digest \w{16}.*--shards"):
        open_training_shards(opened, other_shards)
