"""Rank script: the collectives of the losses, and the energy of sharded centres."""

from __future__ import annotations

from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.losses import centres as centres_module
from hsadml_dist.losses.centres import Centres
from hsadml_dist.losses.reducers import Exchange


def body(comm: Comm, case: str) -> Any:
    """Run the named case."""
    torch.set_num_threads(1)
    return {"exchange": exchange_results, "energy": energies}[case](comm)


def exchange_results(comm: Comm) -> dict[str, dict[str, torch.Tensor]]:
    """Return the result of each collective, with uneven numbers of samples and with none on any rank."""
    rank = comm.topology.rank
    return {"uneven": _messages(comm, (3 * rank + 2) % 4), "none": _messages(comm, 0)}


def _messages(comm: Comm, count: int) -> dict[str, torch.Tensor]:
    rank, exchange = comm.topology.rank, Exchange(comm)
    emb_BD = 100.0 * rank + torch.arange(2.0 * count, dtype=torch.float64).reshape(count, 2)
    emb_ND, label_N = exchange.gather(emb_BD, 10 * rank + torch.arange(count))
    equal_N = torch.arange(len(label_N))
    return {
        "emb": emb_ND,
        "label": label_N,
        "sum": exchange.sum(torch.full((3,), 10.0**rank)),
        "max": exchange.max(torch.tensor([float(rank), -float(rank), 7.0])),
        "select own": exchange.select_own(equal_N),
        "reduce own": exchange.reduce_own(10.0**rank * (1 + equal_N[:, None]).double().expand(-1, 2).contiguous()),
    }


def energies(comm: Comm) -> dict[tuple[str, int, int], tuple[torch.Tensor, torch.Tensor]]:
    """Return (energy, gradient of this rank's rows) by layout, number of classes and size of blocks."""
    ways = [
        (layout, classes, block) for layout in ("replicated", "sharded") for classes in (1, 2, 9) for block in (2, 64)
    ]
    return {way: _energy(comm, *way) for way in ways}


def _energy(comm: Comm, layout: Any, classes: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    centres_module.ENERGY_BLOCK = block
    place: Topology = comm.topology
    centres = Centres(classes, 4, seed=0, rows=place.rank_range(classes) if layout == "sharded" else None).double()
    value = 3 * centres_module.hyperspherical_energy(centres, layout, comm)
    value.backward()
    grad_CD = centres.weight.grad
    assert grad_CD is not None
    return value.detach() / 3, grad_CD / 3


if __name__ == "__main__":
    with_comm(body)
