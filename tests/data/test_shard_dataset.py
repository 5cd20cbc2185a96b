import pickle
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.shard_dataset import ShardDataset
from hsadml_dist.data.transforms import Preprocessing, single_threaded
from hsadml_dist.errors import DataError

SIZE = 24


@pytest.fixture(scope="module")
def index(tiny_shards):
    return load_index(tiny_shards)


@pytest.fixture(scope="module")
def prepared(tiny_shards, index):
    """The images as a training prepares them, by sample key."""
    reader, preprocess = ShardReader(tiny_shards, index), Preprocessing(SIZE)
    with single_threaded():
        return {row.key: preprocess(reader.image(position)) for position, row in enumerate(index.samples)}


def positions(index, split, fold=1):
    return {
        "train": index.outside_folds([fold]),
        "test": index.in_folds([fold]),
        "all": tuple(range(len(index))),
    }[split]


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_split_selects_samples_by_fold(tiny_shards, index, split):
    dataset = ShardDataset(tiny_shards, fold=1, split=split, image_size=SIZE)
    rows = [index.samples[position] for position in positions(index, split)]
    assert dataset.keys == tuple(row.key for row in rows)
    assert len(dataset) == len(rows)
    assert dataset.classes == index.classes
    assert [dataset[place][1] for place in (0, len(rows) - 1, -1)] == [rows[place].label for place in (0, -1, -1)]


def test_without_a_fold_nothing_is_held_out(tiny_shards, index):
    assert len(ShardDataset(tiny_shards)) == len(ShardDataset(str(tiny_shards), split="all")) == len(index)


def test_images_are_prepared_as_in_training(tiny_shards, prepared):
    dataset = ShardDataset(tiny_shards, fold=0, image_size=SIZE)
    for key, (image, label) in zip(dataset.keys, dataset, strict=True):
        assert (type(image), image.dtype, image.shape, type(label)) == (
            torch.Tensor,
            torch.float32,
            (1, SIZE, SIZE),
            int,
        )
        assert torch.equal(image, prepared[key])


def test_image_size_defaults_to_the_stored_size(tiny_shards, index):
    assert ShardDataset(tiny_shards)[0][0].shape == (1, index.size, index.size)


@pytest.mark.parametrize(("workers", "context"), [(0, None), (1, "fork"), (2, "fork"), (1, "spawn"), (2, "spawn")])
def test_dataset_works_with_any_data_loader(tiny_shards, prepared, workers, context):
    dataset = ShardDataset(tiny_shards, fold=0, split="test", image_size=SIZE)
    dataset[0]  # files that are open already must not be shared by spawned workers
    loader = DataLoader(dataset, batch_size=5, num_workers=workers, multiprocessing_context=context)
    images, labels = zip(*loader, strict=True)
    assert torch.equal(torch.cat(images), torch.stack([prepared[key] for key in dataset.keys]))
    assert torch.cat(labels).tolist() == [label for _, label in dataset]


def test_dataset_can_be_pickled(tiny_shards):
    dataset = ShardDataset(tiny_shards, fold=0, image_size=SIZE)
    image, label = dataset[3]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3][0], image) and copy[3][1] == label


def test_transform_is_applied_to_the_prepared_image(tiny_shards, prepared):
    dataset = ShardDataset(tiny_shards, image_size=SIZE, transform=lambda image: image.flip(2))
    assert torch.equal(dataset[0][0], prepared[dataset.keys[0]].flip(2))


def test_settings_of_the_callers_process_are_restored(tiny_shards):
    from monai.data import get_track_meta, set_track_meta

    before, threads = get_track_meta(), torch.get_num_threads()
    set_track_meta(True)
    torch.set_num_threads(2)
    try:
        image, _ = ShardDataset(tiny_shards, image_size=SIZE)[0]
        assert type(image) is torch.Tensor
        assert get_track_meta()
        assert torch.get_num_threads() == 2
    finally:
        set_track_meta(before)
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"fold": 7}, ["fold 7", "allowed: 0, 1, 2"]),
        ({"fold": 7, "split": "all"}, ["fold 7", "allowed: 0, 1, 2"]),
        ({"split": "test"}, ["fold", "None", "allowed: 0, 1, 2"]),
        ({"split": "validation"}, ["split", "'validation'", "allowed: train, test, all"]),
        ({"image_size": 0}, ["image_size", "0", "at least 8"]),
    ],
)
def test_invalid_argument_is_refused_with_what_is_allowed(tiny_shards, arguments, facts):
    with pytest.raises(DataError) as caught:
        ShardDataset(tiny_shards, **arguments)
    assert all(fact in str(caught.value) for fact in facts)
    assert "\n" not in str(caught.value)


def test_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}: ") as caught:
        ShardDataset(tmp_path)
    assert "index.json" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_image_is_reported_with_its_key(tiny_shards, tmp_path, index):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    row = index.samples[0]
    with open(tmp_path / "shards" / index.shards[row.shard].name, "r+b") as file:
        file.seek(row.members["png"][0] + 60)
        file.write(b"\0\1\2")
    with pytest.raises(DataError, match=row.key):
        ShardDataset(tmp_path / "shards")[0]
