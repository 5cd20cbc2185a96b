"""The cached gallery of training cases, ``reference.npz``."""

import io
import shutil
import zipfile

import numpy as np
import pytest

from hsadml_dist.checkpoint.layout import TrainingProgress
from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import TrainingState
from hsadml_dist.data.index import load_index
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation import predict
from hsadml_dist.evaluation.model_loading import open_inference
from hsadml_dist.evaluation.ood import embedding_threshold
from hsadml_dist.evaluation.predict import load_gallery
from hsadml_dist.run.folder import RunFolder


@pytest.fixture
def load(run):
    """Return a function that opens the run again and returns its gallery and the notices."""

    def load_with_notices(shards=None):
        notices = []
        return load_gallery(open_inference(run), shards, notices.append, lambda done, total: None), notices

    return load_with_notices


def assert_same(one, other):
    assert one.table.keys == other.table.keys
    np.testing.assert_array_equal(one.table.emb_ND, other.table.emb_ND)
    np.testing.assert_array_equal(one.thumbnails.cells_NG, other.thumbnails.cells_NG)
    assert (one.embedding_threshold, one.thumbnail_threshold, one.size) == (
        other.embedding_threshold,
        other.thumbnail_threshold,
        other.size,
    )


def test_gallery_holds_the_training_folds_and_thresholds(load, shards, run):
    found, notices = load()
    index = load_index(shards)
    assert found.table.keys == tuple(row.key for row in index.samples if row.fold != 0)
    assert found.size == index.size
    assert found.embedding_threshold == embedding_threshold(found.table.emb_ND, found.table.persons)
    assert 0 < found.embedding_threshold < 2 and 0 < found.thumbnail_threshold < 10
    (notice,) = notices
    assert "24 training cases" in notice and str(run / "reference.npz") in notice


def test_gallery_is_cached_and_loads_without_shards(load, shards):
    made, _ = load()
    shutil.rmtree(shards)
    kept, notices = load()
    assert_same(made, kept)
    assert notices == []


def with_endless_size(data: bytes) -> bytes:
    """An image scaled to this size would not fit in memory."""
    changed = io.BytesIO()
    with np.load(io.BytesIO(data)) as columns:
        np.savez(changed, **{**columns, "size": np.array(10**6)})
    return changed.getvalue()


def with_endless_header(data: bytes) -> bytes:
    """A column that claims more values than there are, behind a header that is no literal."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content.replace(b"'shape': (24", b"'shape': ((") if name == "emb.npy" else content)
    return changed.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-500],
        lambda data: b"",
        lambda data: b"not a zip file",
        with_endless_size,
        with_endless_header,
    ],
)
def test_damaged_cache_is_replaced(load, run, damage):
    made, _ = load()
    path = run / "reference.npz"
    path.write_bytes(damage(path.read_bytes()))
    again, notices = load()
    assert_same(made, again)
    assert len(notices) == 1
    assert load()[1] == []


def test_cache_of_other_weights_with_the_same_name_is_replaced(load, run):
    made, _ = load()
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
    again, notices = load()
    assert len(notices) == 1
    assert again.table.checkpoint == made.table.checkpoint
    assert (again.table.emb_ND != made.table.emb_ND).all()


def test_gallery_loads_if_the_run_folder_is_not_writable(load, run, monkeypatch):
    def refuse(path, columns):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(predict, "save_columns", refuse)
    found, notices = load()
    assert len(found.table) == 24
    assert str(run / "reference.npz") in notices[1] and "Permission denied" in notices[1]


def test_other_shards_are_refused_despite_the_cache(load, other_shards, shards):
    load()
    with pytest.raises(DataError, match="the run was trained on shards with digest"):
        load(other_shards)
    moved = shards.rename(shards.with_name("moved"))
    assert load(moved)[1] == []
