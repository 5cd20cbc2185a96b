import json

from hsadml_dist.data.index import load_index
from hsadml_dist.shards.splits import splits, splits_text


def test_each_fold_is_held_out_once_and_trains_on_the_rest(small_shards):
    index = load_index(small_shards)
    entries = splits(index)
    assert len(entries) == index.folds
    keys = {row.key for row in index.samples}
    for fold, entry in enumerate(entries):
        assert set(entry) == {"train", "val"}
        assert set(entry["val"]) == {row.key for row in index.samples if row.fold == fold}
        assert set(entry["train"]) == keys - set(entry["val"])
        assert entry["val"] == sorted(entry["val"]) and entry["train"] == sorted(entry["train"])


def test_the_file_holds_them(small_shards):
    text = (small_shards / "splits.json").read_text()
    assert text == splits_text(load_index(small_shards))
    assert json.loads(text) == splits(load_index(small_shards))
