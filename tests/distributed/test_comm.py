import os
import socket

import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.distributed.topology import Topology, cpu_threads_for_rank, launch_token, topology_from_environ
from hsadml_dist.errors import UsageError


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def told(request, ranks):
    """What each rank of a job of W ranks was told; W = 1 is the job without groups."""
    return ranks("distributed/comm_ranks.py", request.param)


def rows(rank, count):
    return 100 * rank + torch.arange(count * 4, dtype=torch.float32).reshape(count, 2, 2)


def test_sum_adds_over_all_ranks_in_place(told):
    expected = torch.full((2, 3), float("1" * len(told)), dtype=torch.float64)
    for answer in told:
        torch.testing.assert_close(answer["sum"], expected, rtol=0, atol=0)
        assert answer["in place"]


def test_gather_rows_keeps_rank_order_with_uneven_and_missing_rows(told):
    world = len(told)
    expected = torch.cat([rows(rank, (2 * rank) % 5) for rank in range(world)])
    labels = torch.cat([torch.arange(rank) for rank in range(world)])
    for answer in told:
        assert torch.equal(answer["rows"], expected)
        assert torch.equal(answer["labels"], labels)
        assert answer["labels"].dtype == torch.int64
        assert torch.equal(answer["only last"], rows(world - 1, 3))
        assert answer["none"].shape == (0, 2, 2)


def counts(world):
    return [(3 * rank + 2) % 4 for rank in range(world)]


def test_max_takes_the_largest_in_place(told):
    for answer in told:
        assert answer["max"].tolist() == [len(told) - 1, 0, 7]
        assert answer["max in place"]


def test_sizes_are_those_of_all_ranks_in_order(told):
    assert counts(4) == [2, 1, 0, 3]
    for answer in told:
        assert answer["sizes"] == counts(len(told))


def test_rows_are_gathered_by_sizes_that_are_known_already(told):
    expected = torch.cat([rows(rank, count) for rank, count in enumerate(counts(len(told)))])
    for answer in told:
        assert torch.equal(answer["known sizes"], expected)


def test_each_rank_gets_its_part_of_the_added_rows(told):
    sizes = counts(len(told))
    total = float("1" * len(told)) * (1 + torch.arange(sum(sizes) * 2, dtype=torch.float64).reshape(-1, 2))
    for answer, expected in zip(told, total.split(sizes), strict=True):
        assert torch.equal(answer["scattered"], expected)
        assert answer["scattered none"].shape == (0, 2)


def test_a_group_apart_holds_the_same_ranks_and_mixes_no_messages(told):
    world = len(told)
    ranks_added = sum(range(world))
    for answer in told:
        assert [float(value) for value in answer["apart"]] == [float("1" * world)] * 2
        assert answer["groups differ"] == (world > 1)
        assert answer["apart is the same place"]
        assert answer["crossed"] == [ranks_added, ranks_added + 10 * world]


def test_a_control_group_aside_mixes_no_messages_with_the_first(told):
    for answer in told:
        assert answer["crossed control"] == [[rank + ten for rank in range(len(told))] for ten in (0, 10)]


def test_vote_takes_the_largest(told):
    for answer in told:
        assert answer["vote"] == [[len(told) - 1, 0], [2.0**40 + 0.5], []]


def test_share_gives_rank_0s_value_and_gather_all_of_them(told):
    for answer in told:
        assert answer["share"] == {"from": 0, "text": "ü"}
        assert answer["share none"] is None
        assert answer["gather"] == [("value", rank) for rank in range(len(told))]


def test_a_lone_process_needs_no_group():
    comm = SoloComm()
    assert (comm.topology, comm.group, comm.device) == (Topology(), None, torch.device("cpu"))
    comm.close()


LAUNCHER = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NNODES": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_place_from_the_launcher():
    expected = Topology(rank=5, world_size=8, local_rank=1, local_world_size=4, node_rank=1, num_nodes=2)
    assert topology_from_environ(LAUNCHER) == expected
    assert topology_from_environ({**SLURM, **LAUNCHER}) == expected, "a launcher inside a Slurm job gives the places"


def test_place_in_a_slurm_step():
    assert topology_from_environ(SLURM) == Topology(
        rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1, num_nodes=2
    )


@pytest.mark.parametrize(("text", "largest"), [("4", 4), ("2(x2)", 2), ("3,1", 3), ("1,3", 3), ("1(x2),2", 2)])
def test_the_largest_share_of_uneven_nodes_counts(text, largest):
    assert topology_from_environ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": text}).local_world_size == largest


def test_place_without_a_launcher():
    assert topology_from_environ({}) == Topology()
    in_batch_script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert topology_from_environ(in_batch_script) == Topology(), "a batch script is no task of a step"


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("value", [None, "x", ""])
def test_launcher_variables_that_are_missing_or_no_numbers(name, value):
    environ = {**LAUNCHER, name: value} if value is not None else {k: v for k, v in LAUNCHER.items() if k != name}
    if name == "RANK" and value is None:
        assert topology_from_environ(environ) == Topology()
        return
    with pytest.raises(UsageError, match="launcher's variables") as caught:
        topology_from_environ(environ)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"])
def test_slurm_variables_that_are_no_numbers(name):
    with pytest.raises(UsageError, match="launcher's variables"):
        topology_from_environ({**SLURM, name: "2(x"[::-1]})


@pytest.mark.parametrize("missing", ["SLURM_NTASKS", "SLURM_LOCALID"])
def test_slurm_variables_that_are_missing(missing):
    with pytest.raises(UsageError, match=missing):
        topology_from_environ({name: value for name, value in SLURM.items() if name != missing})


@pytest.mark.parametrize(
    "change",
    [{"RANK": "8"}, {"RANK": "-1"}, {"LOCAL_RANK": "4"}, {"LOCAL_WORLD_SIZE": "0"}, {"LOCAL_WORLD_SIZE": "9"}],
)
def test_places_that_cannot_be_are_refused(change):
    with pytest.raises(UsageError, match="contradict"):
        topology_from_environ({**LAUNCHER, **change})


def test_launch_token_is_one_for_all_ranks_of_a_start_and_for_no_other_start():
    assert launch_token({"HSADML_LAUNCH": "abc", "SLURM_JOB_ID": "7"}) == "abc"
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "0", "SLURM_PROCID": "0"}
    assert launch_token(job) == launch_token({**job, "SLURM_PROCID": "3"})
    others = [{**job, name: "9"} for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    assert len({launch_token(environ) for environ in [job, *others]}) == 4
    del job["SLURM_RESTART_COUNT"]
    assert launch_token(job) == "7-0-0", "a first start has no restart count"


def test_launch_token_of_a_lone_process():
    assert launch_token({}) == f"{socket.gethostname()}-{os.getpid()}"


def test_a_slurm_task_uses_the_processors_it_was_given_and_others_share_the_machine():
    topology = Topology(world_size=2, local_world_size=2)
    assert cpu_threads_for_rank(topology, {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "6"}) == 6
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert cpu_threads_for_rank(topology, {}) == share
    # Inside an allocation but not under srun the variable speaks of tasks that are yet to come.
    assert cpu_threads_for_rank(topology, {"SLURM_CPUS_PER_TASK": "6"}) == share
