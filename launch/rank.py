"""One rank of a run, started locally or by srun: ``python -m hsadml_dist.launch.rank RUN``."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.launch.exit_codes import hard_exit, run_with_exit_code
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.printable import escape_early_warnings
from hsadml_dist.process import pause_gc, resume_gc
from hsadml_dist.run.folder import RunFolder


def main(arguments: Sequence[str]) -> int:
    """Train the run named by the only argument and return the exit code. Errors are reported on stderr."""
    # First, because importing torch takes seconds and a signal that arrives meanwhile must not kill the rank.
    stop_signal = StopSignal()
    stop_signal.install()
    # numpy's OpenBLAS starts its threads on import, and none may exist when loader workers are forked.
    # torch starts its threads with the first large operation; the trainer sets their number before that.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    pause_gc()
    escape_early_warnings()
    try:
        name = "hsadml" if rank is None else f"hsadml: rank {rank}"
        return run_with_exit_code(lambda: _train(arguments, stop_signal), name)
    finally:
        resume_gc()


def run_rank_and_exit(run: str) -> None:
    """Train a run as one rank and end the process; for launchers that call a function.

    After a finished run this returns, so that the launcher can record the success before the process ends.
    """
    code = main([run])
    if code != ExitCode.SUCCESS:
        hard_exit(code)
    atexit.register(hard_exit, code)


def _train(arguments: Sequence[str], stop_signal: StopSignal) -> int:
    if len(arguments) != 1:
        raise UsageError("usage: python -m hsadml_dist.launch.rank RUN")
    run = Path(arguments[0])
    recipe = load_recipe(RunFolder(run).config).recipe
    from hsadml_dist.trainer import train  # imports torch, which takes seconds; an invalid recipe is reported before

    return train(recipe, run, stop_signal)


if __name__ == "__main__":
    hard_exit(main(sys.argv[1:]))
