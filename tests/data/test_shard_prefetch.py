import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hsadml_dist.data.shard_prefetch import ShardSchedule

from hsadml_dist.data.index import load_index
from hsadml_dist.data.order import ExactOrder, WindowOrder
from hsadml_dist.distributed.topology import Topology
from tests.data.test_loader import is_alive

SCRIPT = "data/shard_cache_ranks.py"
MONAI = ["hsadml_dist.data.transforms:load_monai"]


@pytest.fixture
def index(tiny_shards):
    return load_index(tiny_shards)


def need_of(index, kind="window", batch=4, **place):
    positions = index.outside_folds([0])
    order = ExactOrder(count=len(positions), global_batch=batch, seed=1)
    if kind == "window":
        shard_N = np.array([index.samples[position].shard for position in positions])
        order = WindowOrder(shard_N=shard_N, window=2, global_batch=batch, seed=1)
    return ShardSchedule(index=index, positions=positions, order=order, topology=Topology(**place))


def slow_needs(need, first, last, ranks, world):
    """Return the shards of some ranks' samples, first needed first: one sample after another."""
    found = []
    for step in range(first, last + 1):
        for number, (_, place) in enumerate(need.order.sample_refs(step)):
            file = need.index.shards[need.index.samples[need.positions[place]].shard]
            if number * world // need.order.global_batch in ranks and file not in found:
                found.append(file)
    return found


@pytest.mark.parametrize("kind", ["exact", "window"])
@pytest.mark.parametrize(("rank", "local", "here", "world"), [(0, 0, 1, 1), (1, 1, 2, 4), (2, 0, 2, 4), (3, 0, 1, 4)])
def test_what_a_node_needs_comes_in_the_order_of_need(index, kind, rank, local, here, world):
    need = need_of(index, kind, rank=rank, local_rank=local, local_world_size=here, world_size=world)
    node = range(rank - local, rank - local + here)
    for first, last in ((1, 1), (1, 2), (40, 43), (3, 200)):
        assert list(need.node_shards(first, last)) == slow_needs(need, first, last, node, world)
        assert need.step_shards(last) == slow_needs(need, last, last, [rank], world)


def test_looking_ahead_ends_when_all_shards_are_known(index, monkeypatch):
    need = need_of(index)
    assert len(list(need.node_shards(1, 10**12))) == len(index.shards) - len(held_out_alone(index))


def held_out_alone(index):
    return set(range(len(index.shards))) - {index.samples[position].shard for position in index.outside_folds([0])}


def test_a_training_needs_its_steps_shards_and_no_held_out_ones(index):
    need = need_of(index)
    training = [file for place, file in enumerate(index.shards) if place not in held_out_alone(index)]
    assert held_out_alone(index)
    steps = -(-need.order.count // 4)
    for longer in (steps, steps + 1, 10**12):
        assert need.training_shards(longer) == training
    assert need.training_shards(2) == slow_needs(need, 1, 2, [0], 1)
    assert len(need.training_shards(2)) < len(training)


def test_the_process_copies_in_the_order_of_need_and_heeds_nobody_but_its_rank(ranks, server, tiny_shards):
    answer = ranks(SCRIPT, 1, f"ahead {tiny_shards} {server.address}", preload=MONAI)[0]
    assert answer["before"] == [], "nothing is copied before the first step is known"
    assert answer["state"] in {"S", "R", "D"}, "it ignores the notices that end a run"
    assert answer["other"] is None, "one process a node"
    assert answer["arrived"] == answer["expected"]
    assert len(answer["expected"]) > 2
    assert len(server.asked) == len(answer["expected"])


def test_a_rank_that_waits_for_a_shard_can_be_stopped_and_close_waits_for_nothing(ranks, server, tiny_shards, index):
    for file in index.shards:
        server.plans[file.name] = ["stall"]
    answer = ranks(SCRIPT, 1, f"closed {tiny_shards} {server.address}", preload=MONAI)[0]
    assert answer["batch"] is None
    assert answer["left"] == ""
    assert answer["seconds"] < 30, "the server lets nobody go for 60 s"


def test_the_process_dies_with_its_rank(ranks, server, tiny_shards, index, tmp_path):
    for file in index.shards:
        server.plans[file.name] = ["stall"]
    case = f"orphan {tiny_shards} {server.address}"
    ranks(SCRIPT, 1, case, folder=tmp_path, preload=MONAI, expect=-signal.SIGKILL)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def test_copies_change_no_byte_of_any_batch(ranks, server, tiny_shards, tmp_path):
    case = f"batches {tiny_shards} {tiny_shards} {server.address}"
    answer = ranks(SCRIPT, 1, case, folder=tmp_path, preload=MONAI)[0]
    assert answer.pop("threads") == [1] * 5, "copying starts no thread before workers are forked"
    plain = answer.pop("plain")
    assert len(plain) == 7
    assert {name: batches == plain for name, batches in answer.items()} == dict.fromkeys(answer, True)
    assert len(answer) == 4
    held_out = {file.sha256 for file in load_index(tiny_shards).shards} - {p.stem for p in copies(tmp_path, "remote 2")}
    assert len(held_out) == len(held_out_alone(load_index(tiny_shards)))


def copies(folder: Path, name: str) -> list[Path]:
    return list((folder / name).glob("*.tar"))
