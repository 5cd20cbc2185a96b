import hashlib
import json

import pytest

from hsadml_dist.checkpoint.verify import fault_in

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


def test_a_whole_checkpoint_has_no_fault(folder):
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert fault_in(folder) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_is_found_in_every_file(folder, name, bit):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= bit
    (folder / name).write_bytes(content)
    fault = fault_in(folder)
    assert fault is not None
    assert (name if name != "COMMIT" else "manifest.json") in fault


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 5])
def test_a_truncated_file_is_found(folder, name, keep):
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    assert fault_in(folder) is not None


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert fault_in(folder) == f"{name}: No such file or directory"


def test_sizes_are_told(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    size = (folder / "model.safetensors").stat().st_size
    assert fault_in(folder) == f"model.safetensors has {size} bytes, not {size - 1}"


def test_a_layout_of_another_version_is_refused_by_number(folder):
    manifest = json.dumps({**json.loads((folder / "manifest.json").read_text()), "layout": 9}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "COMMIT").write_text(hashlib.sha256(manifest).hexdigest())
    assert fault_in(folder) == "layout 9 is unknown; this version reads layout 1"


def test_a_missing_folder(run):
    assert fault_in(run.folder.checkpoints / "step-00000001.attempt-0001") is not None
