import threading
import time
from dataclasses import replace

import pytest
import torch

from hsadml_dist.checkpoint import save
from hsadml_dist.checkpoint.background import CheckpointSaver, HostCopy
from hsadml_dist.checkpoint.layout import CheckpointName, list_checkpoints
from hsadml_dist.checkpoint.load import choose_checkpoint, find_damage, load_checkpoint
from hsadml_dist.config.recipe import CheckpointConfig
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.errors import CheckpointError, RunLockedError
from hsadml_dist.run.folder import RunFolder
from tests.checkpoint.test_save import small_disk

SECONDS = 60


@pytest.fixture
def saver(run):
    """Return a function that makes a saver of the first attempt; its ``saved`` lists the committed checkpoints."""

    def make(**settings):
        saved = []
        made = CheckpointSaver(
            run.folder, run.folder.attempt(1), SoloComm(), CheckpointConfig(**settings), saved.append
        )
        made.saved = saved
        return made

    return make


@pytest.fixture
def gate(monkeypatch):
    """An event that every write of tensors waits for."""
    gate, write = threading.Event(), save.write_tensors

    def when_open(path, tensors):
        assert gate.wait(SECONDS)
        return write(path, tensors)

    monkeypatch.setattr(save, "write_tensors", when_open)
    yield gate
    gate.set()


def steps(run):
    return [name.step for name in list_checkpoints(run.folder)]


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_background_save_is_not_affected_by_later_steps(run, saver, state, gate):
    training, expected, background = state(10), state(10), saver()
    background.save_async(training)
    for tensors in training.groups.values():
        for tensor in tensors.values():
            tensor.fill_(99)
    assert steps(run) == []
    gate.set()
    background.wait()
    saved = load_checkpoint(run.folder, CheckpointName(10, 1))
    assert saved.progress == expected.progress
    for group, tensors in expected.groups.items():
        for name, tensor in tensors.items():
            assert torch.equal(saved.groups[group][name], tensor)


def test_background_and_foreground_saves_write_identical_files(run, saver, state):
    background = saver(keep=9)
    background.save_async(state(10))
    background.wait()
    before = content(run.path(CheckpointName(10, 1)))
    run.path(CheckpointName(10, 1)).rename(run.folder.checkpoints / "other")
    saver(keep=9, background=False).save_async(state(10))
    assert content(run.path(CheckpointName(10, 1))) == before


def test_background_saves_run_one_at_a_time_and_in_order(run, saver, state, gate):
    background = saver(keep=9)
    background.save_async(state(10))
    second = threading.Thread(target=background.save_async, args=(state(20),))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "the second save must wait for the first"
    gate.set()
    second.join(SECONDS)
    background.wait()
    assert background.saved == [CheckpointName(10, 1), CheckpointName(20, 1)]
    assert steps(run) == [10, 20]


def test_background_save_prunes_old_checkpoints_after_the_commit(run, saver, state):
    background = saver(keep=2, keep_every=10)
    for step in range(10, 25, 2):
        background.save_async(state(step))
    background.wait()
    assert steps(run) == [10, 20, 22, 24]


def test_foreground_save_waits_for_the_pending_one(run, saver, state, gate):
    background = saver()
    background.save_async(state(10))
    threading.Timer(0.1, gate.set).start()
    background.save(state(20))
    assert background.saved == [CheckpointName(10, 1), CheckpointName(20, 1)]
    background.wait()


def test_host_copy_reuses_its_memory(state):
    copy, first = HostCopy(), state(10)
    places = {
        key: tensor.data_ptr()
        for tensors in copy.take(first, first=True).groups.values()
        for key, tensor in tensors.items()
    }
    again = copy.take(state(20), first=True)
    assert places == {key: t.data_ptr() for tensors in again.groups.values() for key, t in tensors.items()}
    assert torch.equal(again.groups["centres"]["weight"], state(20).groups["centres"]["weight"])


def test_host_copy_reallocates_for_other_shapes_dtypes_and_names(state):
    copy, first = HostCopy(), state(10)
    copy.take(first, first=True)
    other = replace(first, groups={"model": {"new": torch.ones(3), "neck.bias": torch.ones(9, dtype=torch.float64)}})
    taken = copy.take(other, first=True)
    assert {name: (t.shape, t.dtype) for name, t in taken.groups["model"].items()} == {
        "new": ((3,), torch.float32),
        "neck.bias": ((9,), torch.float64),
    }
    assert taken.groups.keys() == {"model"}


def test_host_copy_contains_only_what_the_rank_writes(state):
    sharded = replace(state(10), rows=range(3))
    assert HostCopy().take(sharded, first=False).groups.keys() == {"centres", "centres_moments"}
    assert HostCopy().take(state(10), first=False).groups == {}


def test_full_disk_sets_failed_and_is_raised_by_wait(run, saver, state):
    with small_disk(run.folder.checkpoints, kibibytes=2048):
        background = saver()
        background.save_async(state(10))
        background.wait()
        (run.folder.checkpoints / "other").write_bytes(b"x" * 2_000_000)
        background.save_async(state(20))
        wait_for(lambda: background.failed)
        with pytest.raises(CheckpointError, match=r"1 MiB.*0 MiB") as caught:
            background.wait()
        assert "\n" not in str(caught.value)
        assert background.saved == [CheckpointName(10, 1)]
        assert find_damage(run.path(CheckpointName(10, 1))) is None


def test_failed_background_save_is_raised_by_the_next_one(run, saver, state):
    background = saver()
    run.folder.attempt(2).path.mkdir()
    background.save_async(state(10))
    with pytest.raises(RunLockedError, match="attempt 1 "):
        background.save_async(state(20))


def test_error_of_the_callback_is_raised_as_checkpoint_error(run, state):
    def no_space(name):
        raise OSError(28, "No space left on device")

    background = CheckpointSaver(run.folder, run.folder.attempt(1), SoloComm(), CheckpointConfig(), no_space)
    background.save_async(state(10))
    with pytest.raises(CheckpointError, match=r"step-00000010\.attempt-0001.*no space left"):
        background.wait()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_background_saves_of_several_ranks_equal_foreground_saves(ranks, tmp_path, world):
    found = {}
    for way in ("background", "foreground"):
        answers = ranks("checkpoint/background_save_ranks.py", world, f"{way} {tmp_path / way}")
        assert len({answer["sum"] for answer in answers}) == 1
        assert [answer["saved"] for answer in answers] == [[10, 20, 30]] + [[]] * (world - 1)
        run = RunFolder(tmp_path / way)
        assert [name.step for name in list_checkpoints(run)] == [20, 30]
        found[way] = {str(name): content(run.checkpoints / str(name)) for name in list_checkpoints(run)}
    assert found["background"] == found["foreground"]
    assert len([name for name in found["background"]["step-00000030.attempt-0001"] if "centres.rows" in name]) == world


@pytest.mark.parametrize("broken", [0, 1])
def test_save_that_fails_on_one_rank_stops_all_at_the_same_step(ranks, tmp_path, broken):
    answers = ranks("checkpoint/background_save_ranks.py", 2, f"broken-{broken} {tmp_path / 'run'}")
    assert {answer["fault"] for answer in answers} == {answers[0]["fault"]}
    assert answers[0]["fault"].endswith("File too large")
    assert len({answer["stopped at"] for answer in answers}) == 1
    run = RunFolder(tmp_path / "run")
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000010.attempt-0001"]
    assert choose_checkpoint(run, SoloComm()).rejected == []


def test_rank_killed_during_a_save_leaves_no_checkpoint(fork_server, ranks, tmp_path):
    run, script = RunFolder(tmp_path / "run"), "checkpoint/background_save_ranks.py"
    (tmp_path / "ranks").mkdir()
    job = {"script": f"tests/{script}", "folder": str(tmp_path / "ranks"), "world": 2, "preload": []}
    codes = fork_server.run(job | {"case": f"killed {run.path}"})
    assert codes == [70, -9]
    assert [name.step for name in list_checkpoints(run)] == [10]
    (half,) = [path for path in run.checkpoints.iterdir() if path.name.startswith(".")]
    assert any(half.iterdir()), "it was not killed during a write"

    choice = choose_checkpoint(run, SoloComm())
    assert (choice.name, choice.rejected) == (CheckpointName(10, 1), [])
    ranks(script, 2, f"again {run.path}")
    assert [str(name) for name in list_checkpoints(run)] == ["step-00000010.attempt-0001", "step-00000020.attempt-0002"]
    assert not half.exists()
