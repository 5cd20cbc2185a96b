import json
import subprocess
import sys
from dataclasses import replace

import pytest

from hsadml_dist.data.index import (
    SampleRow,
    ShardFile,
    ShardIndex,
    SkippedSample,
    load_index,
    samples_table,
    table_digest,
    write_index,
)
from hsadml_dist.errors import DataError


def make_row(number: int, **changes) -> SampleRow:
    row = SampleRow(
        key=f"{number:016x}",
        shard=number % 2,
        members={"png": (512 + number, 100), "json": (2048 + number, 50)},
        sha256="ab" * 32,
        label=number % 3,
        person=f"p{number // 2}",
        exam=None,
        fold=number % 5,
    )
    return replace(row, **changes)


def make_index(rows) -> ShardIndex:
    return ShardIndex(
        source="table",
        classes=("a", "b", "ü"),
        split_unit="person",
        folds=5,
        seed=0,
        size=64,
        digest=table_digest(samples_table(rows)),
        shards=(
            ShardFile(name="shard-00000.tar", bytes=4096, sha256="00"),
            ShardFile(name="x.tar", bytes=4096, sha256="11"),
        ),
        files=(ShardFile(name="card.json", bytes=3, sha256="22"),),
        skipped=(SkippedSample(where="row 7", reason="damaged"),),
        samples=tuple(rows),
    )


@pytest.fixture
def folder(tmp_path):
    write_index(tmp_path, make_index([make_row(number) for number in range(12)]))
    return tmp_path


def test_load_index_returns_the_written_index(folder):
    index = load_index(folder)
    assert index == make_index([make_row(number) for number in range(12)])
    assert index.samples[3].members["png"] == (515, 100)
    assert len(index) == 12


def test_write_index_leaves_no_temporary_file(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "samples.jsonl"]


def test_in_folds_and_outside_folds_are_complementary(folder):
    index = load_index(folder)
    assert index.in_folds([0]) == (0, 5, 10)
    assert index.in_folds([0, 1]) == (0, 1, 5, 6, 10, 11)
    assert sorted(index.in_folds([0, 3]) + index.outside_folds([0, 3])) == list(range(12))
    assert index.outside_folds([]) == tuple(range(12))


@pytest.mark.parametrize("method", ["in_folds", "outside_folds"])
def test_unknown_fold_is_refused_with_allowed_folds(folder, method):
    with pytest.raises(DataError, match=r"fold 5: .*allowed: 0, 1, 2, 3, 4"):
        getattr(load_index(folder), method)([5])


def test_digest_changes_with_any_row():
    rows = [make_row(number) for number in range(4)]
    digest = table_digest(samples_table(rows))
    for change in ({"fold": 4}, {"label": 2}, {"sha256": "cd" * 32}, {"person": "q"}):
        assert table_digest(samples_table([*rows[:3], replace(rows[3], **change)])) != digest


def test_write_index_refuses_a_wrong_digest(tmp_path):
    with pytest.raises(DataError, match="digest"):
        write_index(tmp_path, replace(make_index([make_row(0)]), digest="00"))
    assert list(tmp_path.iterdir()) == []


def test_missing_index_is_named(tmp_path):
    with pytest.raises(DataError, match=r"index\.json"):
        load_index(tmp_path)


def test_missing_table_is_named(folder):
    (folder / "samples.jsonl").unlink()
    with pytest.raises(DataError, match=r"samples\.jsonl"):
        load_index(folder)


@pytest.mark.parametrize("name", ["index.json", "samples.jsonl"])
@pytest.mark.parametrize("keep", [0, 40, -1])
def test_truncated_file_is_named(folder, name, keep):
    path = folder / name
    content = path.read_bytes().rstrip(b"\n")
    path.write_bytes(content[:keep])
    with pytest.raises(DataError, match=name) as caught:
        load_index(folder)
    assert "\n" not in str(caught.value)


def test_changed_row_is_detected(folder):
    path = folder / "samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"fold":0', b'"fold":1', 1))
    with pytest.raises(DataError, match="SHA-256"):
        load_index(folder)


def test_other_schema_is_refused(folder):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(DataError, match=r"schema 99.*2"):
        load_index(folder)


def test_incomplete_header_is_refused(folder):
    path = folder / "index.json"
    header = json.loads(path.read_text())
    del header["split_unit"]
    path.write_text(json.dumps(header))
    with pytest.raises(DataError, match="schema 2"):
        load_index(folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"label": 3}, "label"),
        ({"shard": 2}, "shard"),
        ({"key": "no"}, "key"),
        ({"fold": -1}, "fold"),
        ({"members": {"png": (0, 1)}}, "members"),
        ({"members": {"png": (-1, 1), "json": (0, 1)}}, "members"),
        ({"members": {"png": (0, 4097), "json": (0, 1)}}, "members"),
        ({"members": {"png": (10**30, 1), "json": (0, 1)}}, "members"),
        ({"members": {"png": (0, 1), "json": (4000, 97)}}, "members"),
        ({"person": 7}, "person"),
        ({"author_fold": -1}, "author_fold"),
        ({"plane": 3}, "plane"),
    ],
)
def test_invalid_row_is_refused_with_position_and_field(tmp_path, change, field):
    write_index(tmp_path, make_index([make_row(0), make_row(1, **change)]))
    with pytest.raises(DataError, match=f"row 1.*{field}"):
        load_index(tmp_path)


@pytest.mark.parametrize("size", [0, -1, 4097, 10**9, True, "64", None, 1.5])
def test_size_that_no_build_makes_is_refused(folder, size):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": size}))
    with pytest.raises(DataError, match=r"index\.json: invalid values: size"):
        load_index(folder)


@pytest.mark.parametrize("table", [b'{"members":[1,2]}\n', b"[" * 100_000 + b"\n", b"null\n", b"[]\n"])
def test_table_of_other_json_is_refused(folder, table):
    header = json.loads((folder / "index.json").read_text())
    (folder / "samples.jsonl").write_bytes(table)
    (folder / "index.json").write_text(json.dumps({**header, "digest": table_digest(table)}))
    with pytest.raises(DataError, match="schema 2"):
        load_index(folder)


def test_header_nested_without_end_is_refused(folder):
    (folder / "index.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        load_index(folder)


def test_load_index_imports_no_heavy_package(folder):
    code = (
        "import sys; from pathlib import Path; from hsadml_dist.data.index import load_index; "
        f"load_index(Path({str(folder)!r})); print(sorted({{'torch', 'numpy', 'webdataset'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
