import shutil
import signal
from collections import Counter

import pytest

from hsadml_dist.data.index import load_index
from hsadml_dist.data.loader import StepSampler
from hsadml_dist.data.order import ExactOrder
from hsadml_dist.distributed.topology import Topology
from tests.conftest import MONAI
from tests.process_waits import wait_until_ended

SCRIPT = "data/loader_ranks.py"
BATCH, STEPS = 12, 7
SEED = 1


@pytest.fixture(scope="module")
def delivered(ranks, tiny_shards):
    return ranks(SCRIPT, 1, f"bytes_of_steps {tiny_shards}", preload=MONAI)[0]


@pytest.fixture(scope="module")
def index(tiny_shards):
    return load_index(tiny_shards)


def test_number_of_workers_changes_no_byte(delivered):
    assert delivered["workers"][1] == delivered["workers"][0]
    assert delivered["workers"][2] == delivered["workers"][0]


def test_number_of_threads_changes_no_byte_of_large_images(delivered):
    """A rank without workers has more threads than a worker, and sums over many pixels would round differently."""
    assert delivered["large"][0] == delivered["large"][1]


def test_workers_are_forked_from_a_single_threaded_process(delivered):
    assert delivered["threads"] == [1] * 5


def test_loading_in_the_rank_keeps_the_state_of_its_generators(ranks, tiny_shards):
    """The learner seeds torch's generator once per step, and nothing may come between."""
    assert ranks(SCRIPT, 1, f"generators {tiny_shards}", preload=MONAI)[0] == [True, True]


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


def test_later_start_delivers_the_same_steps(delivered):
    assert delivered["late"] == delivered["workers"][0][4:]


def test_two_ranks_share_the_batch_of_one(delivered):
    for whole, first, second in zip(delivered["workers"][0], *delivered["pair"], strict=True):
        assert first[2] + second[2] == whole[2]
        assert first[1] + second[1] == whole[1]


def test_samples_are_augmented_differently_in_each_epoch(delivered):
    digests = [digest for digest, _, _ in delivered["workers"][0]]
    assert max(Counter(digests).values()) == 1


@pytest.fixture(scope="module")
def cached(ranks, tiny_shards):
    return ranks(SCRIPT, 1, f"cached {tiny_shards}", preload=MONAI)[0]


@pytest.mark.parametrize("state", ["none", "cold", "warm"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_cache_changes_no_byte(delivered, cached, state, workers):
    assert cached[f"monai {state} {workers}"] == delivered["workers"][0]
    assert cached[f"fused {state} {workers}"] == cached["fused none 0"]


def test_ranks_may_share_a_cache(delivered, cached):
    assert cached["shared"] == delivered["pair"]


def test_fused_augmentation_changes_pixels_but_no_sample(delivered, cached):
    for plain, fused in zip(delivered["workers"][0], cached["fused none 0"], strict=True):
        assert fused[1:] == plain[1:]
        assert fused[0] != plain[0]


def test_workers_ignore_stop_signals_and_are_gone_after_close(ranks, tiny_shards, tmp_path):
    answer = ranks(SCRIPT, 1, f"stop_signals {tiny_shards}", folder=tmp_path, preload=MONAI)[0]
    assert set(answer["states"]) <= {"S", "R", "D"}
    assert answer["sizes"] == [BATCH] * (STEPS - 1)
    assert answer["left"] == ["", ""]
    assert answer["sockets"] == 2, "each worker has left a socket"
    assert answer["scratch left"] == []


def test_blocked_worker_delays_neither_a_stop_nor_close(ranks, tiny_shards):
    answer = ranks(SCRIPT, 1, f"blocked {tiny_shards}")[0]
    assert answer["first"] == BATCH
    assert answer["second"] is None, "a rank that is asked to stop gives up waiting"
    assert answer["left"] == [""]


def test_killed_worker_is_reported_with_pid_signal_and_likely_cause(ranks, tiny_shards):
    [(killed, memory), (crashed, shared)] = ranks(SCRIPT, 1, f"lost {tiny_shards}")[0]
    assert all(fact in memory for fact in (f"worker {killed} ", "signal 9", "data.workers", "data.prefetch"))
    assert all(fact in shared for fact in (f"worker {crashed} ", "signal 7", "/dev/shm"))
    assert "\n" not in memory + shared


def test_workers_die_with_their_parent(ranks, tiny_shards, tmp_path):
    ranks(SCRIPT, 1, f"orphans {tiny_shards}", folder=tmp_path, expect=-signal.SIGKILL)
    pids = [int(pid) for pid in (tmp_path / "workers").read_text().split()]
    assert len(pids) == 2
    assert all(wait_until_ended(pid) for pid in pids)


def test_damaged_image_is_reported_with_its_key(ranks, tiny_shards, tmp_path, index):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    row = index.samples[7]
    path = tmp_path / "shards" / index.shards[row.shard].name
    content = bytearray(path.read_bytes())
    content[row.members["png"][0] + 40] ^= 4
    path.write_bytes(content)
    errors = ranks(SCRIPT, 1, f"damaged {tmp_path / 'shards'}")[0]
    assert len(errors) == 2, "without and with workers"
    for text in errors:
        assert row.key in text
        assert "\n" not in text


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_step_sampler_divides_each_step_among_ranks(world):
    order = ExactOrder(count=31, global_batch=12, seed=5)
    samplers = [StepSampler(order, Topology(rank=rank, world_size=world)) for rank in range(world)]
    assert [list(sampler) for sampler in samplers] == [[]] * world, "there are no steps before set_steps"
    for sampler in samplers:
        sampler.set_steps(3, 6)
    for step, parts in zip(range(3, 7), zip(*samplers, strict=True), strict=True):
        assert [ref for part in parts for ref in part] == order.sample_refs(step)
