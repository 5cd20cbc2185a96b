import json
import shutil
import tarfile
from dataclasses import replace

import pytest

from hsadml_dist.data.index import load_index, samples_table, table_digest, write_index
from hsadml_dist.shards.build import BuildOptions, build_shards
from hsadml_dist.shards.sources.table import TableSource
from hsadml_dist.shards.verify import verify_shards


@pytest.fixture(scope="module")
def pristine(table, key, tmp_path_factory):
    out = tmp_path_factory.mktemp("pristine") / "shards"
    options = BuildOptions(samples_per_shard=6, size=16, folds=3)
    build_shards(TableSource(table=table), out, options, key, 1, lambda *_: None)
    return out


@pytest.fixture
def shards(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "shards")


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def rewrite(folder, change_row):
    """Rewrite the index with ``change_row(position, row)`` applied, and with the matching digest."""
    index = load_index(folder)
    rows = tuple(change_row(position, row) for position, row in enumerate(index.samples))
    write_index(folder, replace(index, samples=rows, digest=table_digest(samples_table(rows))))


def test_verify_valid_folder_reports_progress_and_no_fault(shards):
    seen = []
    assert verify_shards(shards, lambda done, total: seen.append((done, total))) == ()
    total = len(load_index(shards).shards)
    assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("member", ["png", "json"])
def test_verify_flipped_bit_names_tar_and_sample(shards, member):
    index = load_index(shards)
    row = index.samples[-1]
    name = index.shards[row.shard].name
    flip(shards / name, row.members[member][0] + row.members[member][1] // 2)
    faults = verify_shards(shards)
    assert any(name in fault and "SHA-256" in fault for fault in faults)
    assert all(name in fault for fault in faults)
    if member == "png":
        assert any(row.key in fault for fault in faults)


def test_verify_detects_flipped_bit_in_padding(shards):
    flip(shards / "shard-00001.tar", -1)
    (fault,) = verify_shards(shards)
    assert "shard-00001.tar" in fault


def test_verify_reports_all_faults(shards):
    flip(shards / "shard-00000.tar", 600)
    (shards / "shard-00001.tar").unlink()
    path = shards / "shard-00002.tar"
    path.write_bytes(path.read_bytes()[:-600])
    (shards / "shard-00099.tar").write_bytes(b"")
    faults = "\n".join(verify_shards(shards))
    for text in ("shard-00000.tar", "shard-00001.tar: cannot be read", "shard-00002.tar: ", "shard-00099.tar: not in"):
        assert text in faults


def test_verify_reports_garbled_member_header(shards):
    path = shards / "shard-00000.tar"
    path.write_bytes(b"\xff" * 700 + path.read_bytes()[700:])
    assert any("not a tar" in fault for fault in verify_shards(shards))


@pytest.mark.parametrize("size", [-1024, -512, 1 << 60])
def test_verify_ends_on_a_member_of_negative_or_endless_size(shards, size):
    path = shards / "shard-00000.tar"
    with tarfile.open(path) as tar:
        first = tar.next()
    first.size = size
    header = bytearray(first.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
    if size < 0:
        header[124:136] = b"\xff" * 4 + (size % (1 << 64)).to_bytes(8)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + path.read_bytes()[512:])
    assert any("not a tar of samples" in fault for fault in verify_shards(shards))


def test_verify_reports_patient_in_two_folds(shards):
    index = load_index(shards)
    persons = [row.person for row in index.samples]
    place = next(place for place, person in enumerate(persons) if persons.count(person) > 1)
    rewrite(shards, lambda position, row: replace(row, fold=(row.fold + 1) % 3) if position == place else row)
    faults = verify_shards(shards)
    assert any(f"person {persons[place]} is in folds" in fault for fault in faults)
    assert any("differ in: fold" in fault for fault in faults)


def test_verify_reports_wrong_offset(shards):
    shift = lambda members: {name: (offset + 512, size) for name, (offset, size) in members.items()}  # noqa: E731
    rewrite(shards, lambda position, row: replace(row, members=shift(row.members)) if position == 0 else row)
    assert any("offset" in fault for fault in verify_shards(shards))


def test_verify_reports_label_that_differs_from_json(shards):
    rewrite(shards, lambda position, row: replace(row, label=(row.label + 1) % 3) if position == 0 else row)
    assert any("differ in: label, class_name" in fault for fault in verify_shards(shards))


def test_verify_reports_duplicate_key_and_sample_without_row(shards):
    first = load_index(shards).samples[0]
    rewrite(shards, lambda position, row: first if position == 1 else row)
    faults = "\n".join(verify_shards(shards))
    assert f"duplicate key {first.key}" in faults
    assert "is not in samples.jsonl" in faults


def test_verify_reports_wrong_size_in_header(shards):
    path = shards / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": 17, "folds": 4}))
    faults = "\n".join(verify_shards(shards))
    assert "png is 16 x 16, 16 bits" in faults
    assert "folds 4, but samples are in 3" in faults


@pytest.mark.parametrize("name", ["card.html", "card.json", "splits.json", "contents.json"])
def test_verify_reports_changed_or_missing_description(shards, name):
    (shards / name).write_text((shards / name).read_text().replace("0", "1", 1))
    (fault,) = verify_shards(shards)
    assert fault.startswith(f"{name}: ") and "SHA-256" in fault
    (shards / name).unlink()
    (fault,) = verify_shards(shards)
    assert fault.startswith(f"{name}: ") and "No such file" in fault


def test_verify_reports_damaged_index_once(shards):
    (shards / "samples.jsonl").write_bytes((shards / "samples.jsonl").read_bytes()[:-9])
    (fault,) = verify_shards(shards)
    assert "samples.jsonl is damaged" in fault
