import hashlib
import json
import os

import pytest

from hsadml_dist.checkpoint.load import find_damage

FILES = (
    "model.safetensors",
    "model_moments.safetensors",
    "centres.safetensors",
    "centres_moments.safetensors",
    "progress.json",
    "manifest.json",
    "COMMIT",
)


@pytest.fixture
def folder(run):
    return run.path(run.save(1, 10))


def test_intact_checkpoint_has_no_damage(folder):
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert find_damage(folder) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bit", [1, 128])
def test_flipped_bit_is_found_in_every_file(folder, name, bit):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= bit
    (folder / name).write_bytes(content)
    damage = find_damage(folder)
    assert damage is not None
    assert (name if name != "COMMIT" else "manifest.json") in damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 5])
def test_truncated_file_is_found(folder, name, keep):
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    assert find_damage(folder) is not None


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert find_damage(folder).startswith(f"{name}: ")


def test_wrong_size_is_reported_with_both_sizes(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    size = (folder / "model.safetensors").stat().st_size
    damage = find_damage(folder)
    assert all(fact in damage for fact in ("model.safetensors", str(size), str(size - 1)))


def test_unknown_layout_is_rejected_by_number(folder):
    manifest = json.dumps({**json.loads((folder / "manifest.json").read_text()), "layout": 9}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "COMMIT").write_text(hashlib.sha256(manifest).hexdigest())
    assert "layout 9" in find_damage(folder)


def rewritten(folder, **changes):
    """Rewrite the manifest with other content and a matching COMMIT."""
    record = json.loads((folder / "manifest.json").read_text()) | changes
    manifest = json.dumps(record).encode()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "COMMIT").write_text(hashlib.sha256(manifest).hexdigest())


ENTRY = {"bytes": 1, "sha256": "x"}


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {},
        {"model.safetensors": ENTRY},
        {"progress.json": None},
        {"progress.json": {"bytes": "1", "sha256": "x"}},
        {"progress.json": {"bytes": 1}},
        {"progress.json": ENTRY, "../../secret": ENTRY},
    ],
)
def test_invalid_manifest_content_is_damage(folder, files):
    rewritten(folder, files=files)
    assert find_damage(folder).startswith("manifest.json ")


def test_huge_commit_file_is_not_read_into_memory(folder):
    with open(folder / "COMMIT", "wb") as file:
        file.truncate(2**40)
    assert find_damage(folder).startswith("manifest.json ")


def test_fifo_in_place_of_a_file_does_not_block(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert find_damage(folder).startswith("model.safetensors ")


def test_disk_error_while_reading_names_the_file(folder, monkeypatch):
    def broken(file, algorithm):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", broken)
    assert ".safetensors: " in find_damage(folder)


def test_missing_folder_is_damage(run):
    assert find_damage(run.folder.checkpoints / "step-00000001.attempt-0001") is not None
