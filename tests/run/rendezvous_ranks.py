"""Ranks of one start that find each other through the run folder, as the launcher starts them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from rank_script import RankArguments

from hsadml_dist.errors import HsadmlError
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import join_run


def main(arguments: RankArguments) -> None:
    """Answer with (attempt, sum over the ranks, token), or with the type of the error."""
    path, token, timeout_seconds = arguments.case.split(" ")
    os.environ["HSADML_LAUNCH"] = token
    facts = {"world_size": arguments.world}
    try:
        context = join_run(RunFolder(Path(path)), arguments.topology, facts, int(timeout_seconds), lambda: False)
    except HsadmlError as error:
        arguments.save_result(type(error).__name__)
        return
    total = context.comm.all_reduce_sum(torch.tensor(1.0 + arguments.rank))
    arguments.save_result((context.attempt.number, float(total), context.holder.token))
    context.comm.close()


if __name__ == "__main__":
    main(RankArguments.read())
