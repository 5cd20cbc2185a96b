"""One rank of a run, on this machine or under srun: ``python -m hsadml_dist.launch.rank RUN``."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hsadml_dist.config.io import load_recipe
from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.garbage import collect_again, leave_for_later
from hsadml_dist.launch.ending import guarded
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.stop.signals import Notice


def main(arguments: Sequence[str]) -> int:
    """Train the run named by the only argument; returns the exit code. Errors become text on stderr."""
    # First of all: torch's import takes seconds, and a notice that comes meanwhile must not kill the rank.
    notice = Notice()
    notice.install()
    # numpy's OpenBLAS starts its threads when it is imported, and none may exist when loader workers are forked.
    # torch's threads start with the first large operation and take their number from the trainer.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    leave_for_later()
    try:
        return guarded(lambda: _train(arguments, notice), "hsadml" if rank is None else f"hsadml: rank {rank}")
    finally:
        collect_again()


def leave(code: int) -> None:
    """End the process with ``code``, without the interpreter's own exit: gloo's threads sometimes abort in it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run_and_leave(run: str) -> None:
    """Train a run as one rank and end the process, unless the run is done; for starters that call a function."""
    code = main([run])
    if code != ExitCode.DONE:
        leave(code)
    # The starter may write down that it is done; then the process must still not end in the interpreter's own way.
    atexit.register(leave, code)


def _train(arguments: Sequence[str], notice: Notice) -> int:
    if len(arguments) != 1:
        raise UsageError("usage: python -m hsadml_dist.launch.rank RUN")
    run = Path(arguments[0])
    recipe = load_recipe(RunFolder(run).config).recipe
    from hsadml_dist.train import train  # torch: seconds that a wrong recipe need not wait for

    return train(recipe, run, notice)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
