"""Rendezvous of the ranks that a test starts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from hsadml_dist.distributed.comm import StoreAddress, TorchComm, connect_store, create_store
from hsadml_dist.distributed.topology import Topology

SECONDS = 60


def meet(path: Path, world: int, rank: int) -> TorchComm:
    """Open the store on rank 0, publish its address at ``path``, and connect the other ranks to it."""
    topology = Topology(rank=rank, world_size=world, local_rank=rank, local_world_size=world)
    return TorchComm(topology, _store(path, topology), torch.device("cpu"), SECONDS)


def _store(path: Path, topology: Topology) -> torch.distributed.Store:
    if topology.is_rank_zero:
        store, address = create_store(topology, SECONDS)
        path.with_suffix(".tmp").write_text(json.dumps([address.host, address.port]))
        path.with_suffix(".tmp").rename(path)
        return store
    while not path.exists():
        time.sleep(0.02)
    host, port = json.loads(path.read_text())
    return connect_store(StoreAddress(host=host, port=port), SECONDS)
