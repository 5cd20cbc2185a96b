"""One rank of a run, on this machine or under srun: ``python -m hsadml_dist.launch.rank RUN``."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.launch.exit_codes import run_with_exit_code
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.process import pause_gc, resume_gc
from hsadml_dist.run.folder import RunFolder


def main(arguments: Sequence[str]) -> int:
    """Train the run named by the only argument; returns the exit code. Errors become text on stderr."""
    # First of all: torch's import takes seconds, and a notice that comes meanwhile must not kill the rank.
    notice = StopSignal()
    notice.install()
    # numpy's OpenBLAS starts its threads when it is imported, and none may exist when loader workers are forked.
    # torch's threads start with the first large operation and take their number from the trainer.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    pause_gc()
    try:
        return run_with_exit_code(
            lambda: _train(arguments, notice), "hsadml" if rank is None else f"hsadml: rank {rank}"
        )
    finally:
        resume_gc()


def hard_exit(code: int) -> None:
    """End the process with ``code``, without the interpreter's own exit: gloo's threads sometimes abort in it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run_rank_and_exit(run: str) -> None:
    """Train a run as one rank and end the process, unless the run is done; for starters that call a function."""
    code = main([run])
    if code != ExitCode.SUCCESS:
        hard_exit(code)
    # The starter may write down that it is done; then the process must still not end in the interpreter's own way.
    atexit.register(hard_exit, code)


def _train(arguments: Sequence[str], notice: StopSignal) -> int:
    if len(arguments) != 1:
        raise UsageError("usage: python -m hsadml_dist.launch.rank RUN")
    run = Path(arguments[0])
    recipe = load_recipe(RunFolder(run).config).recipe
    from hsadml_dist.train import train  # torch: seconds that a wrong recipe need not wait for

    return train(recipe, run, notice)


if __name__ == "__main__":
    hard_exit(main(sys.argv[1:]))
