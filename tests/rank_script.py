"""Shared start and end of the rank scripts of tests."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hsadml_dist.distributed.comm import Comm, SoloComm, TorchComm
from hsadml_dist.distributed.rank_store import StoreAddress, connect_store, create_store
from hsadml_dist.distributed.topology import Topology

SECONDS = 60


@dataclass(frozen=True)
class RankArguments:
    """Command line of a rank script."""

    folder: Path
    world: int
    rank: int
    case: str

    @staticmethod
    def read() -> RankArguments:
        """Parse the command line."""
        return RankArguments(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

    @property
    def topology(self) -> Topology:
        """All ranks on one node."""
        return Topology(rank=self.rank, world_size=self.world, local_rank=self.rank, local_world_size=self.world)

    def save_result(self, value: Any) -> None:
        """Save this rank's result for the test."""
        torch.save(value, self.folder / f"result-{self.rank}.pt")


def with_comm(body: Callable[[Comm, str], Any]) -> None:
    """Connect the ranks, save what ``body(comm, case)`` returns, and disconnect together."""
    arguments = RankArguments.read()
    comm = SoloComm() if arguments.world == 1 else connect(arguments)
    arguments.save_result(body(comm, arguments.case))
    comm.close()


def connect(arguments: RankArguments) -> TorchComm:
    """Connect the ranks: rank 0 creates the store and publishes its address, the others wait for it."""
    store = _store(arguments.folder / "address.json", arguments.topology)
    return TorchComm(arguments.topology, store, torch.device("cpu"), SECONDS)


def _store(path: Path, topology: Topology) -> torch.distributed.Store:
    if topology.is_rank_zero:
        store, address = create_store(topology, SECONDS)
        path.with_suffix(".new").write_text(json.dumps(asdict(address)))
        path.with_suffix(".new").rename(path)
        return store
    while not path.exists():
        time.sleep(0.005)
    return connect_store(StoreAddress(**json.loads(path.read_text())), SECONDS)
