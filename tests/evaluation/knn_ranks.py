"""One rank of the neighbour search: run as ``python knn_ranks.py FOLDER WORLD RANK``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from hsadml_dist.comm import Address, TorchComm, join_store, open_store
from hsadml_dist.evaluation.knn import nearest_distributed
from hsadml_dist.topology import Topology

SECONDS = 60


def main(folder: Path, world: int, rank: int) -> None:
    """Search with an uneven share of the rows: the last rank of several holds no references at all."""
    topology = Topology(rank=rank, world_size=world, local_rank=rank, local_world_size=world)
    comm = TorchComm(topology, meet(topology, folder / "address.json"), torch.device("cpu"), SECONDS)
    rows = torch.load(folder / "rows.pt")
    queries = rows["queries"][slice_of(len(rows["queries"]), rank, world)]
    holders = max(1, world - 1)
    references = rows["references"][slice_of(len(rows["references"]), rank, holders)] if rank < holders else None
    references = rows["references"][:0] if references is None else references
    cosines, positions = nearest_distributed(queries, references, comm, k=4, block=10)
    answer = {"cosines": cosines.tolist(), "positions": positions.tolist()}
    (folder / f"{rank}.json").write_text(json.dumps(answer))
    comm.close()


def slice_of(count: int, index: int, parts: int) -> slice:
    """Cut unevenly: part i takes i + 1 shares."""
    shares = parts * (parts + 1) // 2
    return slice(count * (index * (index + 1) // 2) // shares, count * ((index + 1) * (index + 2) // 2) // shares)


def meet(topology: Topology, path: Path) -> torch.distributed.Store:
    """Rank 0 opens the store and publishes its address, the others wait for it."""
    if topology.is_first:
        store, address = open_store(topology, SECONDS)
        path.with_suffix(".tmp").write_text(json.dumps([address.host, address.port]))
        path.with_suffix(".tmp").rename(path)
        return store
    while not path.exists():
        time.sleep(0.02)
    host, port = json.loads(path.read_text())
    return join_store(Address(host=host, port=port), SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # gloo threads sometimes abort a normal interpreter exit.
    sys.stdout.flush()
    os._exit(0)
