import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hsadml_dist.data.batch import Batch

from hsadml_dist.data.index import load_index
from hsadml_dist.data.loader import StepSampler
from hsadml_dist.data.order import ExactOrder
from hsadml_dist.distributed.topology import Topology

MONAI = ["hsadml_dist.data.transforms:load_monai"]
SCRIPT = "data/loader_ranks.py"
BATCH, STEPS = 12, 7
SEED = 1


@pytest.fixture(scope="module")
def delivered(ranks, tiny_shards):
    return ranks(SCRIPT, 1, f"bytes_of_steps {tiny_shards}", preload=MONAI)[0]


@pytest.fixture(scope="module")
def index(tiny_shards):
    return load_index(tiny_shards)


def test_the_number_of_workers_changes_no_byte(delivered):
    assert delivered["workers"][1] == delivered["workers"][0]
    assert delivered["workers"][2] == delivered["workers"][0]


def test_nor_does_the_number_of_threads_where_images_are_large(delivered):
    """A rank without workers has more threads than a worker has, and sums over many pixels would round differently."""
    assert delivered["large"][0] == delivered["large"][1]


def test_workers_are_forked_from_a_process_of_one_thread(delivered):
    assert delivered["threads"] == [1, 1, 1]


def test_keys_and_labels_follow_the_order(delivered, index):
    positions = index.outside_folds([0])
    order = ExactOrder(count=len(positions), global_batch=BATCH, seed=SEED)
    for step, (_, labels, keys) in enumerate(delivered["workers"][0], start=1):
        rows = [index.samples[positions[place]] for _, place in order.sample_refs(step)]
        assert list(keys) == [row.key for row in rows]
        assert labels == [row.label for row in rows]


def test_held_out_samples_are_never_delivered(delivered, index):
    keys = {key for _, _, keys in delivered["workers"][0] for key in keys}
    assert keys == {index.samples[position].key for position in index.outside_folds([0])}


def test_a_later_start_delivers_what_an_earlier_one_would_have(delivered):
    assert delivered["late"] == delivered["workers"][0][4:]


def test_two_ranks_share_what_one_would_have(delivered):
    for whole, first, second in zip(delivered["workers"][0], *delivered["pair"], strict=True):
        assert first[2] + second[2] == whole[2]
        assert first[1] + second[1] == whole[1]


def test_a_sample_looks_different_in_the_next_epoch(delivered):
    digests = [digest for digest, _, _ in delivered["workers"][0]]
    assert max(Counter(digests).values()) == 1


@pytest.fixture(scope="module")
def cached(ranks, tiny_shards):
    return ranks(SCRIPT, 1, f"cached {tiny_shards}", preload=MONAI)[0]


@pytest.mark.parametrize("state", ["none", "cold", "warm"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_cache_changes_no_byte_whatever_the_number_of_workers(delivered, cached, state, workers):
    assert cached[f"monai {state} {workers}"] == delivered["workers"][0]
    assert cached[f"fused {state} {workers}"] == cached["fused none 0"]


def test_ranks_share_a_cache(delivered, cached):
    assert cached["shared"] == delivered["pair"]


def test_fused_augmentation_changes_pixels_and_no_sample(delivered, cached):
    for plain, fused in zip(delivered["workers"][0], cached["fused none 0"], strict=True):
        assert fused[1:] == plain[1:]
        assert fused[0] != plain[0]


def test_workers_are_deaf_to_notices_and_gone_after_close(ranks, tiny_shards, tmp_path):
    answer = ranks(SCRIPT, 1, f"notices {tiny_shards}", folder=tmp_path, preload=MONAI)[0]
    assert set(answer["states"]) <= {"S", "R", "D"}
    assert answer["keys"] == [BATCH] * (STEPS - 1)
    assert answer["left"] == ["", ""]
    assert answer["files"] == [2, False], "each worker has left a socket, and close() has removed them"
    assert answer["seconds"] < 1


def test_a_worker_asleep_in_a_read_delays_nobody(ranks, tiny_shards):
    answer = ranks(SCRIPT, 1, f"asleep {tiny_shards}")[0]
    assert answer["first"] == BATCH
    assert answer["second"] is None, "whoever is told to stop while it waits gives the batch up"
    assert 0.2 <= answer["waited"] < 1
    assert answer["close"] < 1
    assert answer["left"] == [""]


def test_a_killed_worker_is_one_line_where_its_batch_is_waited_for(ranks, tiny_shards):
    answer = ranks(SCRIPT, 1, f"lost {tiny_shards}")[0]
    [(killed, memory), (crashed, shared)] = answer
    assert memory.startswith(f"loader worker {killed} was killed by signal 9; for want of memory? fewer data.workers")
    assert shared == f"loader worker {crashed} was killed by signal 7; for want of shared memory? see df /dev/shm"


def test_workers_die_with_their_parent(ranks, tiny_shards, tmp_path):
    ranks(SCRIPT, 1, f"orphans {tiny_shards}", folder=tmp_path, expect=-signal.SIGKILL)
    pids = [int(pid) for pid in (tmp_path / "workers").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 2
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if is_alive(pid)]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_damaged_byte_is_one_line_with_the_samples_key(ranks, tiny_shards, tmp_path, index):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    row = index.samples[7]
    path = tmp_path / "shards" / index.shards[row.shard].name
    content = bytearray(path.read_bytes())
    content[row.members["png"][0] + 40] ^= 4
    path.write_bytes(content)
    said = ranks(SCRIPT, 1, f"damaged {tmp_path / 'shards'}")[0]
    assert len(said) == 2, "without and with workers"
    for text in said:
        assert row.key in text
        assert "\n" not in text


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_sampler_gives_each_rank_its_part_of_the_asked_steps(world):
    order = ExactOrder(count=31, global_batch=12, seed=5)
    samplers = [StepSampler(order, Topology(rank=rank, world_size=world)) for rank in range(world)]
    assert [list(sampler) for sampler in samplers] == [[]] * world, "no steps before they are asked for"
    for sampler in samplers:
        sampler.set_steps(3, 6)
    for step, parts in zip(range(3, 7), zip(*samplers, strict=True), strict=True):
        assert [ticket for part in parts for ticket in part] == order.sample_refs(step)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_parts_of_a_batch_are_the_batch(count):
    batch = Batch(image=torch.arange(7.0).reshape(7, 1, 1, 1), label=torch.arange(7), keys=tuple("abcdefg"))
    parts = batch.microbatches(count)
    assert len(parts) == count
    assert torch.equal(torch.cat([part.image for part in parts]), batch.image)
    assert torch.equal(torch.cat([part.label for part in parts]), batch.label)
    assert tuple(key for part in parts for key in part.keys) == batch.keys
    sizes = [len(part.keys) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [len(part.image) for part in parts] == sizes
