import dataclasses

import pytest

from hsadml_dist.distributed.topology import Topology, allowed_world_sizes, split_range


@pytest.mark.parametrize("count", [0, 1, 7, 12, 1000])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 64])
def test_parts_are_the_whole_in_order_and_nearly_equal(count, parts):
    cut = [split_range(count, index, parts) for index in range(parts)]
    assert [number for part in cut for number in part] == list(range(count))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_a_rank_takes_its_own_part():
    parts = [Topology(rank=rank, world_size=3).rank_range(8) for rank in range(3)]
    assert parts == [range(0, 2), range(2, 5), range(5, 8)]


def test_only_rank_0_is_first():
    assert [Topology(rank=rank, world_size=2).is_rank_zero for rank in range(2)] == [True, False]


def test_a_place_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Topology().rank = 1


def test_allowed_world_sizes_are_the_divisors():
    assert allowed_world_sizes(24, 10) == [1, 2, 3, 4, 6, 8]
    assert allowed_world_sizes(7, 7) == [1, 7]
