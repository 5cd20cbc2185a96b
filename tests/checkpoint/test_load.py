import hashlib
import os
import re
import shutil

import pytest
import safetensors.torch
import torch

from hsadml_dist.checkpoint import load
from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.checkpoint.load import (
    choose_checkpoint,
    load_checkpoint,
    load_inference_state,
    load_safetensors,
)
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.distributed.comm import FakeComm, SoloComm
from hsadml_dist.errors import CheckpointError


class PeerWithDamage(FakeComm):
    """Rank 0 of two ranks, of which the other finds ``damages[n]`` in the n-th checkpoint that is checked."""

    def __init__(self, damages):
        super().__init__(0, 2)
        self.damages = damages
        self.calls = 0

    def all_gather_json(self, value):
        self.calls += 1
        return [value, self.damages.get(self.calls)]


@pytest.fixture
def three(run):
    return [run.save(1, step) for step in (10, 20, 30)]


def choose(run):
    return choose_checkpoint(run.folder, SoloComm())


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_manifest(folder, manifest):
    """Replace the manifest, with a matching COMMIT."""
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "COMMIT").write_text(hashlib.sha256(manifest).hexdigest())


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "model.safetensors", 50),
    "a flipped byte": lambda folder: flip(folder / "centres.safetensors"),
    "a flipped byte of the header": lambda folder: flip(folder / "centres.safetensors", 3),
    "no COMMIT": lambda folder: (folder / "COMMIT").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a file that is a folder": lambda folder: replace_by_folder(folder / "model.safetensors"),
    "a manifest that is not JSON": lambda folder: replace_manifest(folder, b"{"),
    "a manifest of another shape": lambda folder: replace_manifest(folder, b"[1]"),
    "a folder that is a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


def test_checkpoint_round_trip_is_bit_identical(run, state):
    name = run.save(1, 10)
    loaded, saved = load_checkpoint(run.folder, name), state(10)
    assert loaded.progress == saved.progress
    assert loaded.groups.keys() == saved.groups.keys()
    for group, tensors in saved.groups.items():
        assert loaded.groups[group].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert loaded.groups[group][key].dtype == tensor.dtype
            assert loaded.groups[group][key].shape == tensor.shape
            assert torch.equal(loaded.groups[group][key], tensor)


def test_choice_without_checkpoints_is_a_start_from_scratch(run):
    assert choose(run).name is None
    run.folder.checkpoints.mkdir()
    assert choose(run).name is None


def test_choice_is_the_newest_checkpoint(run, three):
    choice = choose(run)
    assert (choice.name, choice.rejected) == (three[-1], [])


def test_choice_ignores_an_interrupted_save(run, three):
    half = run.folder.checkpoints / ".step-00000040.attempt-0001.tmp"
    shutil.copytree(run.path(three[-1]), half)
    (half / "COMMIT").unlink()
    choice = choose(run)
    assert (choice.name, choice.rejected) == (three[-1], [])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_choice_rejects_a_damaged_checkpoint_with_its_reason(run, three, damage):
    damage(run.path(three[-1]))
    choice = choose(run)
    assert choice.name == three[-2]
    [(name, reason)] = choice.rejected
    assert name == three[-1]
    assert re.fullmatch(r"rank 0: \S.*", reason)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_choice_raises_if_all_checkpoints_are_damaged(run, three, damage):
    for name in three:
        damage(run.path(name))
    with pytest.raises(CheckpointError, match=f"{three[-1]}: rank 0: "):
        choose(run)


def test_choice_rejects_a_checkpoint_that_is_damaged_on_one_rank(run, three):
    choice = choose_checkpoint(run.folder, PeerWithDamage({1: "model.safetensors has 0 bytes, not 9"}))
    assert choice.name == three[-2]
    assert choice.rejected == [(three[-1], "rank 1: model.safetensors has 0 bytes, not 9")]


def test_choice_excludes_checkpoints_outside_the_lineage(run):
    first = run.save(1, 10)
    run.begin(2, first)
    run.save(1, 30)
    assert choose(run).name == first
    second = run.save(2, 20)
    assert choose(run).name == second


def test_inference_loads_the_newest_intact_checkpoint(run, three, state):
    DAMAGES["a flipped byte"](run.path(three[-1]))
    loaded = load_inference_state(run.folder)
    assert (loaded.name, loaded.data_digest) == (three[-2], "d")
    assert torch.equal(loaded.centres, state(20).groups["centres"]["weight"])
    assert torch.equal(loaded.model["neck.bias"], state(20).groups["model"]["neck.bias"])


def test_inference_uses_running_averages_of_weights(run, state):
    def with_averages(step):
        one = state(step)
        one.groups["model_ema"] = {"neck.bias": torch.full((4,), 7.0)}
        one.groups["model_ema_count"] = {"updates": torch.tensor(3)}
        return one

    save_checkpoint(run.folder, run.folder.attempt(1), with_averages(10))
    loaded = load_inference_state(run.folder)
    assert loaded.model["neck.bias"].tolist() == [7.0] * 4
    assert torch.equal(loaded.model["conv.weight"], state(10).groups["model"]["conv.weight"])
    assert loaded.model.keys() == state(10).groups["model"].keys()


def test_inference_loads_the_bias_of_losses_that_have_one(run, three, state):
    assert load_inference_state(run.folder).bias is None
    with_bias = state(40)
    with_bias.groups["head"] = {"bias": torch.tensor(-3.5)}
    save_checkpoint(run.folder, run.folder.attempt(1), with_bias)
    assert load_inference_state(run.folder).bias == -3.5


def test_inference_retries_when_a_training_removes_the_checkpoint(run, three, state, monkeypatch):
    verify = load.find_damage

    def and_replace_it_by_a_newer_one(folder):
        damage = verify(folder)
        if folder == run.path(three[-1]):
            shutil.rmtree(folder)
            run.save(1, 40)
        return damage

    monkeypatch.setattr(load, "find_damage", and_replace_it_by_a_newer_one)
    assert load_inference_state(run.folder).name == CheckpointName(40, 1)


def test_inference_without_checkpoints_raises(run):
    with pytest.raises(CheckpointError, match=str(run.folder.path)):
        load_inference_state(run.folder)


def test_load_safetensors_returns_tensors_by_name(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert load_safetensors(tmp_path / "w.safetensors")["a"].tolist() == [1, 1]


def test_load_safetensors_rejects_missing_files_and_other_formats(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt"):
        load_safetensors(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"none\.safetensors: .*No such file"):
        load_safetensors(tmp_path / "none.safetensors")


def test_files_outside_the_manifest_are_not_opened(run, three):
    folder = run.path(three[-1])
    with open(folder / "huge.safetensors", "wb") as file:
        file.truncate(2**40)  # a hole: no byte of it is on the disk
    (folder / "centres.rows-0000000000-0000000003.safetensors").write_bytes(b"no tensors")
    assert choose(run).name == three[-1]
    assert load_checkpoint(run.folder, three[-1]).groups.keys() == {
        "model",
        "model_moments",
        "centres",
        "centres_moments",
    }


def test_choice_rejects_a_renamed_checkpoint(run, three):
    shutil.copytree(run.path(three[0]), run.path(CheckpointName(99, 1)))
    choice = choose(run)
    assert choice.name == three[-1]
    [(name, reason)] = choice.rejected
    assert name == CheckpointName(99, 1)
    assert all(fact in reason for fact in ("rank 0", "manifest.json", "step 10", "attempt 1"))


def test_damaged_parent_file_is_named(run, three):
    run.begin(2, three[0])
    path = run.folder.attempt(2).parent
    for text in ("{", '{"x": 1}', '{"checkpoint": "x"}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"parent\.json"):
            choose(run)


def test_choice_ignores_other_files_in_the_folder(run, three):
    (run.folder.checkpoints / "README").write_text("mine")
    assert choose(run).name == three[-1] == CheckpointName(30, 1)
