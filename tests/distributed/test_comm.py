import pytest
import torch

from hsadml_dist.distributed.comm import FakeComm, SoloComm, comm_from_process_group
from hsadml_dist.distributed.topology import Topology

SCRIPT = "distributed/comm_ranks.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[(kind, world) for kind in ("own", "borrowed") for world in (1, 2, 3, 4)])
def results(request, ranks):
    """The results of each rank of a job; a job of one rank has no group."""
    kind, world = request.param
    return ranks(SCRIPT, world, kind)


@pytest.fixture(scope="module")
def subgroup_results(ranks):
    return ranks(SCRIPT, 4, "subgroup")


def rows(rank, count):
    return 100 * rank + torch.arange(count * 4, dtype=torch.float32).reshape(count, 2, 2)


def sizes(world):
    return [(3 * rank + 2) % 4 for rank in range(world)]


def test_all_reduce_sum_adds_over_ranks_in_place(results):
    expected = torch.full((2, 3), float("1" * len(results)), dtype=torch.float64)
    for result in results:
        torch.testing.assert_close(result["sum"], expected, rtol=0, atol=0)
        assert result["sum in place"]


def test_all_gather_rows_keeps_rank_order_with_uneven_and_missing_rows(results):
    world = len(results)
    expected = torch.cat([rows(rank, (2 * rank) % 5) for rank in range(world)])
    labels = torch.cat([torch.arange(rank) for rank in range(world)])
    for result in results:
        assert torch.equal(result["rows"], expected)
        assert torch.equal(result["labels"], labels)
        assert result["labels"].dtype == torch.int64
        assert torch.equal(result["rows of last rank"], rows(world - 1, 3))
        assert result["no rows"].shape == (0, 2, 2)


def test_all_gather_rows_accepts_known_sizes(results):
    expected = torch.cat([rows(rank, count) for rank, count in enumerate(sizes(len(results)))])
    for result in results:
        assert torch.equal(result["rows of known sizes"], expected)


def test_all_reduce_max_tensor_works_in_place(results):
    for result in results:
        assert result["tensor max"].tolist() == [len(results) - 1, 0, 7]
        assert result["tensor max in place"]


def test_all_gather_sizes_returns_rank_order(results):
    assert sizes(4) == [2, 1, 0, 3]
    for result in results:
        assert result["sizes"] == sizes(len(results))


def test_reduce_scatter_rows_returns_each_ranks_part(results):
    world = len(results)
    total = float("1" * world) * (1 + torch.arange(sum(sizes(world)) * 2, dtype=torch.float64).reshape(-1, 2))
    for result, expected in zip(results, total.split(sizes(world)), strict=True):
        assert torch.equal(result["scattered"], expected)
        assert result["scattered none"].shape == (0, 2)


def test_new_train_group_keeps_messages_apart(results):
    world = len(results)
    for result in results:
        assert [float(value) for value in result["sums"]] == [float("1" * world)] * 2
        assert result["groups differ"] == (world > 1)
        assert result["same place"]
        assert result["crossed sums"] == [sum(range(world)), sum(range(world)) + 10 * world]


def test_new_control_group_keeps_messages_apart(results):
    for result in results:
        assert result["crossed objects"] == [[rank + ten for rank in range(len(results))] for ten in (0, 10)]


def test_all_reduce_max_keeps_fp64(results):
    for result in results:
        assert result["max"] == [[len(results) - 1, 0], [2.0**40 + 0.5], []]


def test_object_collectives_broadcast_rank_0_and_gather_all(results):
    for result in results:
        assert result["broadcast"] == {"from": 0, "text": "ü"}
        assert result["broadcast none"] is None
        assert result["objects"] == [["value", rank] for rank in range(len(results))]


def test_borrowed_group_is_left_open(ranks):
    for world in (1, 2):
        for result in ranks(SCRIPT, world, "borrowed"):
            assert result["before"] == "SoloComm", "before torch.distributed is initialised"
            assert result["solo"] == (world == 1)
            assert result["alive"] == (world > 1)


def test_borrowed_subgroup_numbers_its_own_ranks(subgroup_results):
    assert [result["rank"] for result in subgroup_results] == [0, 0, 1, 1]
    for result in subgroup_results:
        assert torch.equal(result["sum"], torch.full((2, 3), 11.0, dtype=torch.float64))
        assert result["objects"] == [["value", 0], ["value", 1]]
        assert result["broadcast"]["from"] == 0
        assert result["crossed objects"] == [[0, 1], [10, 11]]


def test_solo_comm_needs_no_group():
    comm = SoloComm()
    assert (comm.topology, comm.group, comm.device) == (Topology(), None, CPU)
    comm.close()


def test_fake_comm_has_peers_with_the_same_values():
    comm = FakeComm(1, 3)
    assert (comm.topology.rank, comm.topology.world_size) == (1, 3)
    assert comm.all_reduce_sum(torch.ones(2)).tolist() == [3, 3]
    assert comm.all_gather_sizes(4) == [4, 4, 4]
    assert comm.all_gather_rows(torch.tensor([5, 6])).tolist() == [5, 6] * 3
    assert comm.reduce_scatter_rows(torch.arange(6.0), [1, 2, 3]).tolist() == [3, 6]
    assert comm.all_gather_json("x") == ["x"] * 3


def test_comm_from_process_group_without_torch_distributed_is_solo():
    assert isinstance(comm_from_process_group(None, CPU), SoloComm)
