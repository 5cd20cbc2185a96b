from dataclasses import replace

import pytest

from hsadml_dist.data.index import SampleRow, ShardFile, ShardIndex, samples_table, table_digest, write_index


@pytest.fixture
def shards(tmp_path):
    """Write a shard index without tar files: all that is read before a run starts."""

    def write(name="shards", samples=10, folds=5, unit="person", person="p"):
        folder = tmp_path / name
        folder.mkdir()
        row = SampleRow(
            key="0" * 16,
            shard=0,
            members={"png": (0, 1), "json": (1, 1)},
            sha256="",
            label=0,
            person=person,
            exam=None,
            fold=0,
        )
        rows = tuple(replace(row, key=f"{number:016x}", fold=number % folds) for number in range(samples))
        index = ShardIndex(
            source="table",
            classes=("a",),
            split_unit=unit,
            folds=folds,
            seed=0,
            size=8,
            digest=table_digest(samples_table(rows)),
            shards=(ShardFile(name="0.tar", bytes=2, sha256=""),),
            samples=rows,
        )
        write_index(folder, index)
        return folder

    return write


@pytest.fixture
def recipe(tmp_path, shards, monkeypatch):
    """A recipe in an otherwise empty working directory, with shards of five folds."""
    monkeypatch.chdir(tmp_path)
    shards()
    path = tmp_path / "mine.yaml"
    path.write_text("data: {shards: shards}\ntrain: {epochs: 3, global_batch: 12}\n")
    return str(path)
