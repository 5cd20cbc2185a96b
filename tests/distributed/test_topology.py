import dataclasses
import os
import socket

import pytest

from hsadml_dist.distributed.topology import (
    Topology,
    allowed_world_sizes,
    cpu_threads_for_rank,
    launch_token,
    split_range,
    topology_from_environ,
)
from hsadml_dist.errors import UsageError

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


@pytest.mark.parametrize("count", [0, 1, 7, 12, 1000])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 64])
def test_split_range_covers_range_in_nearly_equal_parts(count, parts):
    cut = [split_range(count, index, parts) for index in range(parts)]
    assert [number for part in cut for number in part] == list(range(count))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_rank_range_is_the_part_of_the_rank():
    parts = [Topology(rank=rank, world_size=3).rank_range(8) for rank in range(3)]
    assert parts == [range(0, 2), range(2, 5), range(5, 8)]


def test_only_rank_0_is_rank_zero():
    assert [Topology(rank=rank, world_size=2).is_rank_zero for rank in range(2)] == [True, False]


def test_topology_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Topology().rank = 1


def test_allowed_world_sizes_are_the_divisors():
    assert allowed_world_sizes(24) == [1, 2, 3, 4, 6, 8, 12, 24]
    assert allowed_world_sizes(7) == [1, 7]


def test_topology_from_launcher_variables():
    expected = Topology(rank=5, world_size=8, local_rank=1, local_world_size=4, node_rank=1, num_nodes=2)
    assert topology_from_environ(LAUNCHER) == expected
    assert topology_from_environ({**SLURM, **LAUNCHER}) == expected, "a launcher inside a Slurm job wins"


def test_topology_from_slurm_step():
    expected = Topology(rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1, num_nodes=2)
    assert topology_from_environ(SLURM) == expected


@pytest.mark.parametrize(("text", "largest"), [("4", 4), ("2(x2)", 2), ("3,1", 3), ("1,3", 3), ("1(x2),2", 2)])
def test_local_world_size_is_the_largest_of_uneven_nodes(text, largest):
    assert topology_from_environ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": text}).local_world_size == largest


def test_topology_without_launcher_is_a_single_process():
    assert topology_from_environ({}) == Topology()
    in_batch_script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert topology_from_environ(in_batch_script) == Topology(), "a batch script is not a task of a step"


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("value", [None, "x", ""])
def test_incomplete_or_malformed_launcher_variables_are_refused(name, value):
    environ = {**LAUNCHER, name: value} if value is not None else {k: v for k, v in LAUNCHER.items() if k != name}
    if name == "RANK" and value is None:
        assert topology_from_environ(environ) == Topology()
        return
    with pytest.raises(UsageError) as caught:
        topology_from_environ(environ)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"])
def test_malformed_slurm_variables_are_refused(name):
    with pytest.raises(UsageError):
        topology_from_environ({**SLURM, name: "2(x"[::-1]})


@pytest.mark.parametrize("missing", ["SLURM_NTASKS", "SLURM_LOCALID"])
def test_missing_slurm_variable_is_named(missing):
    with pytest.raises(UsageError, match=missing):
        topology_from_environ({name: value for name, value in SLURM.items() if name != missing})


@pytest.mark.parametrize(
    "change",
    [{"RANK": "8"}, {"RANK": "-1"}, {"LOCAL_RANK": "4"}, {"LOCAL_WORLD_SIZE": "0"}, {"LOCAL_WORLD_SIZE": "9"}],
)
def test_contradictory_launcher_variables_are_refused_with_their_values(change):
    environ = {**LAUNCHER, **change}
    with pytest.raises(UsageError) as caught:
        topology_from_environ(environ)
    assert f"rank {environ['RANK']} of {environ['WORLD_SIZE']}" in str(caught.value)
    assert f"local rank {environ['LOCAL_RANK']} of {environ['LOCAL_WORLD_SIZE']}" in str(caught.value)


def test_launch_token_identifies_one_start():
    assert launch_token({"HSADML_LAUNCH": "abc", "SLURM_JOB_ID": "7"}) == "abc"
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "0", "SLURM_PROCID": "0"}
    assert launch_token(job) == launch_token({**job, "SLURM_PROCID": "3"})
    others = [{**job, name: "9"} for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    assert len({launch_token(environ) for environ in [job, *others]}) == 4
    del job["SLURM_RESTART_COUNT"]
    assert launch_token(job) == "7-0-0", "a first start has no restart count"


def test_launch_token_of_a_single_process_names_host_and_pid():
    assert launch_token({}) == f"{socket.gethostname()}-{os.getpid()}"


def test_cpu_threads_follow_slurm_task_or_an_even_share():
    topology = Topology(world_size=2, local_world_size=2)
    assert cpu_threads_for_rank(topology, {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "6"}) == 6
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert cpu_threads_for_rank(topology, {}) == share
    # Inside an allocation but not under srun, the variable is about tasks that are yet to start.
    assert cpu_threads_for_rank(topology, {"SLURM_CPUS_PER_TASK": "6"}) == share
