"""Where a process stands among its peers: a frozen value and plain arithmetic, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The place of one rank in a job.

    Attributes:
        rank: This process's number in the whole job, from 0.
        world_size: Number of ranks in the job.
        local_rank: This process's number on its node, from 0.
        local_world_size: Number of ranks on this node.
        node_rank: This node's number, from 0.
        num_nodes: Number of nodes.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, the one that writes the run's files."""
        return self.rank == 0

    def rank_range(self, count: int) -> range:
        """Return this rank's contiguous part of ``range(count)``; parts differ in size by at most one."""
        return split_range(count, self.rank, self.world_size)


def split_range(count: int, index: int, parts: int) -> range:
    """Return the ``index``-th of ``parts`` contiguous parts of ``range(count)``; sizes differ by at most one."""
    return range(count * index // parts, count * (index + 1) // parts)


def allowed_world_sizes(global_batch: int, up_to: int) -> list[int]:
    """Return the numbers of ranks, up to ``up_to``, that divide ``global_batch`` evenly."""
    return [w for w in range(1, up_to + 1) if global_batch % w == 0]
