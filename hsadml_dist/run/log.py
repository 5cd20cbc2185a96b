"""A rank's log file."""

from __future__ import annotations

import faulthandler
import logging

from hsadml_dist.run.folder import AttemptFolder

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_log(attempt: AttemptFolder, rank: int) -> None:
    """Send this process's log records, and its stacks if it crashes, to the rank's file in the attempt's folder."""
    path = attempt.log(rank)
    path.parent.mkdir(exist_ok=True)
    handler = logging.StreamHandler(path.open("a", encoding="utf-8"))
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    faulthandler.enable(file=handler.stream)
