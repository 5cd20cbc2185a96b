"""Ranks that measure as those of the doctor's job do; the clock of rank 1 is two seconds ahead."""

from __future__ import annotations

import time
from dataclasses import asdict
from unittest import mock

from rank_script import Call

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.launch.doctor.probe_network import measure_group

AHEAD = 2.0


def main(call: Call) -> None:
    """Answer with the group report."""
    topology = Topology(rank=call.rank, world_size=call.world, local_rank=call.rank, local_world_size=call.world)
    clock = time.time
    with mock.patch("hsadml_dist.launch.doctor.probe_network.time.time", lambda: clock() + AHEAD * call.rank):
        call.answer(asdict(measure_group(call.folder, topology)))


if __name__ == "__main__":
    main(Call.read())
