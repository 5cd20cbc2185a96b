"""A rank's log file."""

from __future__ import annotations

import faulthandler
import logging

from hsadml_dist.run.folder import AttemptFolder

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_rank_logging(attempt: AttemptFolder, rank: int) -> None:
    """Send this process's log records, and its stacks if it crashes, to the rank's file in the attempt's folder.

    Rank 0 says warnings on its standard error too, for all.
    """
    path = attempt.log(rank)
    path.parent.mkdir(exist_ok=True)
    handler = logging.StreamHandler(path.open("a", encoding="utf-8"))
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    if rank == 0:
        aloud = logging.StreamHandler()
        aloud.setLevel(logging.WARNING)
        aloud.setFormatter(logging.Formatter("hsadml: %(message)s"))
        root.addHandler(aloud)
    faulthandler.enable(file=handler.stream)
