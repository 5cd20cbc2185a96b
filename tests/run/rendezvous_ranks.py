"""Ranks of one start that find each other through the run folder, as the launcher starts them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from rank_script import Call

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import HsadmlError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import join_run


def main(call: Call) -> None:
    """Answer with (attempt, sum over the ranks, token), or with the type of the error."""
    path, token, timeout_seconds = call.case.split(" ")
    os.environ["HSADML_LAUNCH"] = token
    topology = Topology(rank=call.rank, world_size=call.world, local_rank=call.rank, local_world_size=call.world)
    facts = {"world_size": call.world}
    try:
        context = join_run(RunFolder(Path(path)), topology, facts, int(timeout_seconds), lambda: False)
    except HsadmlError as error:
        call.answer(type(error).__name__)
        return
    total = context.comm.all_reduce_sum(torch.tensor(1.0 + call.rank))
    call.answer((context.attempt.number, float(total), context.holder.token))
    context.comm.close()


if __name__ == "__main__":
    main(Call.read())
