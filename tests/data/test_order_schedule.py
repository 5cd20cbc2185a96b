import numpy as np
import pytest

from hsadml_dist.data.index import load_index
from hsadml_dist.data.order import ExactOrder, ShardSchedule, WindowOrder
from hsadml_dist.distributed.topology import Topology


@pytest.fixture
def index(tiny_shards):
    return load_index(tiny_shards)


def schedule_of(index, kind="window", batch=4, **place):
    positions = index.outside_folds([0])
    order = ExactOrder(count=len(positions), global_batch=batch, seed=1)
    if kind == "window":
        shard_N = np.array([index.samples[position].shard for position in positions])
        order = WindowOrder(shard_N=shard_N, window=2, global_batch=batch, seed=1)
    return ShardSchedule(index=index, positions=positions, order=order, topology=Topology(**place))


def reference_shards(schedule, first, last, ranks, world):
    """Return the shards of some ranks' samples in order of need, one sample after another."""
    found = []
    for step in range(first, last + 1):
        for number, (_, place) in enumerate(schedule.order.sample_refs(step)):
            file = schedule.index.shards[schedule.index.samples[schedule.positions[place]].shard]
            if number * world // schedule.order.global_batch in ranks and file not in found:
                found.append(file)
    return found


def held_out_shards(index):
    """Return the shards that contain samples of the held-out fold only."""
    return set(range(len(index.shards))) - {index.samples[position].shard for position in index.outside_folds([0])}


@pytest.mark.parametrize("kind", ["exact", "window"])
@pytest.mark.parametrize(("rank", "local", "here", "world"), [(0, 0, 1, 1), (1, 1, 2, 4), (2, 0, 2, 4), (3, 0, 1, 4)])
def test_node_and_step_shards_match_reference(index, kind, rank, local, here, world):
    schedule = schedule_of(index, kind, rank=rank, local_rank=local, local_world_size=here, world_size=world)
    node = range(rank - local, rank - local + here)
    for first, last in ((1, 1), (1, 2), (40, 43), (3, 200)):
        assert list(schedule.node_shards(first, last)) == reference_shards(schedule, first, last, node, world)
        assert schedule.step_shards(last) == reference_shards(schedule, last, last, [rank], world)


def test_node_shards_end_when_all_are_known(index):
    assert len(list(schedule_of(index).node_shards(1, 10**12))) == len(index.shards) - len(held_out_shards(index))


def test_training_shards_are_those_of_its_steps(index):
    schedule = schedule_of(index)
    training = [file for place, file in enumerate(index.shards) if place not in held_out_shards(index)]
    assert held_out_shards(index)
    steps = -(-schedule.order.count // 4)
    for longer in (steps, steps + 1, 10**12):
        assert schedule.training_shards(longer) == training
    assert schedule.training_shards(2) == reference_shards(schedule, 1, 2, [0], 1)
    assert len(schedule.training_shards(2)) < len(training)
