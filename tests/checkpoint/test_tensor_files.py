import dataclasses
import hashlib
import json

import pytest
import safetensors.torch
import torch

from hsadml_dist.checkpoint.digest import state_digest
from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.checkpoint.load import find_damage, load_checkpoint, load_inference_state
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import (
    CHUNK_BYTES,
    DTYPES,
    group_file_name,
    list_groups,
    read_group,
    write_bytes,
    write_tensors,
)
from hsadml_dist.run.folder import RunFolder


def test_training_state_is_frozen(state):
    with pytest.raises(dataclasses.FrozenInstanceError):
        state(1).groups = {}
    assert state(3).progress.step == 3


def random_tensor(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


STATES = {
    "no tensors": {},
    "every dtype": {f"t.{dtype}": (40 * random_tensor(3, 5)).to(dtype) for dtype in DTYPES},
    "names not sorted by dtype": {
        "z": random_tensor(2).double(),
        "a": random_tensor(3),
        "m": random_tensor(1).bfloat16(),
    },
    "scalars and empty tensors": {"step": torch.tensor(7.0), "none": random_tensor(0, 4), "count": torch.tensor(3)},
    "name beyond ASCII": {'grün "x"': random_tensor(2)},
    "larger than a chunk": {"big": random_tensor(CHUNK_BYTES // 4 + 3), "small": random_tensor(5)},
}


@pytest.mark.parametrize("tensors", STATES.values(), ids=STATES)
def test_written_file_equals_that_of_the_safetensors_library(tensors, tmp_path):
    entry = write_tensors(tmp_path / "ours", tensors)
    ours = (tmp_path / "ours").read_bytes()
    assert ours == safetensors.torch.save(tensors)
    assert entry == {"bytes": len(ours), "sha256": hashlib.sha256(ours).hexdigest()}


def test_written_tensors_are_in_index_order_for_any_memory_layout(tmp_path):
    tensors = {
        "channels last": random_tensor(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "transposed": random_tensor(4, 3).t(),
        "part": random_tensor(4, 6)[:, 1:3],
        "expanded": random_tensor(1, 3).expand(4, 3),
        "half": random_tensor(4, 3).bfloat16().t(),
        "trained": torch.nn.Parameter(random_tensor(2, 2)),
    }
    write_tensors(tmp_path / "ours", tensors)
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    assert (tmp_path / "ours").read_bytes() == safetensors.torch.save(plain)


def test_write_bytes_returns_size_and_hash(tmp_path):
    entry = write_bytes(tmp_path / "file", b"text")
    assert (tmp_path / "file").read_bytes() == b"text"
    assert entry == {"bytes": 4, "sha256": hashlib.sha256(b"text").hexdigest()}


CLASSES = 7
FEW = 2
"""Fewer classes than ranks, so that one rank has no row."""
NAME = CheckpointName(3, 1)


def started_run(path):
    run = RunFolder(path)
    run.attempt(1).path.mkdir(parents=True)
    return run


def case(do, run, classes, seed=0):
    return json.dumps({"do": do, "run": str(run.path), "classes": classes, "seed": seed})


def concatenated(answers):
    """Return the groups of all ranks, with the rows of the centres concatenated."""
    groups = {group: dict(tensors) for group, tensors in answers[0]["groups"].items()}
    for group in ("centres", "centres_moments"):
        for name, tensor in groups[group].items():
            if tensor.ndim:
                groups[group][name] = torch.cat([answer["groups"][group][name] for answer in answers])
    return groups


@pytest.fixture(scope="module", params=[CLASSES, FEW], ids=["7 classes", "2 classes"])
def saved(request, ranks, tmp_path_factory):
    """State that three ranks have trained and saved: (run, classes, groups)."""
    run = started_run(tmp_path_factory.mktemp("rows") / "run")
    answers = ranks("checkpoint/sharded_rows_ranks.py", 3, case("save", run, request.param))
    return run, request.param, concatenated(answers)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_sharded_groups_saved_by_three_ranks_load_on_any_number_of_ranks(saved, ranks, world):
    run, classes, expected = saved
    answers = ranks("checkpoint/sharded_rows_ranks.py", world, case("load", run, classes, seed=99))
    assert [row for answer in answers for row in answer["rows"]] == list(range(classes))
    found = concatenated(answers)
    assert {"weight:exp_avg", "weight:exp_avg_sq", "weight:step"} == found["centres_moments"].keys()
    for group in ("centres", "centres_moments", "head", "head_moments"):
        assert found[group].keys() == expected[group].keys()
        for name, tensor in expected[group].items():
            assert torch.equal(found[group][name], tensor), (group, name)
    assert expected["centres_moments"]["weight:exp_avg"].abs().min() > 0, "moments of zero would prove nothing"


def test_each_rank_writes_only_its_own_rows(saved):
    run, classes, _ = saved
    files = {path.name for path in (run.checkpoints / str(NAME)).glob("centres.*")}
    parts = [range(classes * r // 3, classes * (r + 1) // 3) for r in range(3)]
    assert files == {group_file_name("centres", part) for part in parts if part}
    assert find_damage(run.checkpoints / str(NAME)) is None
    assert list_groups(run.checkpoints / str(NAME)) == [
        "centres",
        "centres_moments",
        "head",
        "head_moments",
        "model",
        "model_moments",
    ]


def test_digest_does_not_depend_on_sharding(saved, tmp_path):
    run, _, _ = saved
    whole = started_run(tmp_path / "whole")
    state = load_checkpoint(run, NAME)
    save_checkpoint(whole, whole.attempt(1), state)
    folders = [place.checkpoints / str(NAME) for place in (run, whole)]
    assert state_digest(folders[0]) == state_digest(folders[1])
    assert (folders[1] / group_file_name("centres")).exists()


def test_inference_loads_all_centres_of_a_sharded_checkpoint(saved):
    run, classes, expected = saved
    assert torch.equal(load_inference_state(run).centres, expected["centres"]["weight"])
    assert len(expected["centres"]["weight"]) == classes


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 2), (1, 5), (4, 7), (6, 7), (3, 3)])
def test_read_group_returns_any_range_of_rows(start, stop, saved):
    run, classes, expected = saved
    rows = range(min(start, classes), min(stop, classes))
    found = read_group(run.checkpoints / str(NAME), "centres_moments", rows)
    for name, tensor in expected["centres_moments"].items():
        assert torch.equal(found[name], tensor[rows.start : rows.stop] if tensor.ndim else tensor)


def test_write_error_of_one_rank_is_raised_on_all_and_leaves_no_files(ranks, tmp_path):
    run = started_run(tmp_path / "run")
    (run.checkpoints / f".{NAME}.tmp").mkdir(parents=True)  # in the way, as left by a rank that kept running
    answers = ranks("checkpoint/sharded_rows_ranks.py", 2, case("save", run, CLASSES))
    assert len({answer["fault"] for answer in answers}) == 1
    assert "cannot be written" in answers[0]["fault"]
    assert list(run.checkpoints.iterdir()) == []
