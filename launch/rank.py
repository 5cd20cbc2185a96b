"""One rank of a run, on this machine or under srun: ``python -m hsadml_dist.launch.rank RUN``."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from hsadml_dist.config.io import load_recipe
from hsadml_dist.errors import ExitCode, HsadmlError
from hsadml_dist.launch.extras import needs_extra
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.stop.signals import NOTICES

POSTPONE_SECONDS = 0.25


def main(arguments: Sequence[str]) -> int:
    """Train the run named by the only argument; returns the exit code. Errors become text on stderr."""
    if len(arguments) != 1:
        return _complain("usage: python -m hsadml_dist.launch.rank RUN", ExitCode.USAGE)
    postpone_notices()
    # numpy's OpenBLAS starts its threads when it is imported, and none may exist when loader workers are forked.
    # torch's threads start with the first large operation and take their number from the trainer.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run = Path(arguments[0])
    return guarded(lambda: _train(run))


def guarded(work: Callable[[], int]) -> int:
    """Return the exit code of ``work``, or the one that stands for what it raised."""
    try:
        return int(work())
    except HsadmlError as fault:
        return _complain(str(fault), fault.exit_code)
    except SystemExit as fault:
        if isinstance(fault.code, str):
            return _complain(fault.code, ExitCode.USER)
        return int(fault.code or 0)
    except ModuleNotFoundError as fault:
        if needs_extra(fault):
            return _complain(needs_extra(fault), ExitCode.USER)
        traceback.print_exc()
        return ExitCode.INTERNAL
    except KeyboardInterrupt:
        return _complain("interrupted", ExitCode.STOPPED)
    except Exception:  # noqa: BLE001  the process ends here, and its code must say that this is a defect
        traceback.print_exc()
        return ExitCode.INTERNAL


def postpone_notices() -> None:
    """Keep signals that come before the trainer listens, which is seconds after the start, from killing the rank.

    A signal that finds these handlers still in place is sent again a moment later, until the trainer's own have
    replaced them: every rank then stops the same way, by agreement, however early it was told.
    """
    early: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        early.append(number)
        signal.setitimer(signal.ITIMER_REAL, POSTPONE_SECONDS)

    def send_again(number: int, frame: FrameType | None) -> None:
        while early:
            os.kill(os.getpid(), early.pop())

    signal.signal(signal.SIGALRM, send_again)
    for number in NOTICES:
        signal.signal(number, note)


def leave(code: int) -> None:
    """End the process with ``code``, without the interpreter's own exit: gloo's threads sometimes abort in it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _train(run: Path) -> int:
    recipe = load_recipe(RunFolder(run).config).recipe
    from hsadml_dist.train import train  # torch: seconds that a wrong recipe need not wait for

    return train(recipe, run)


def _complain(text: str, code: int) -> int:
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    print(f"hsadml: {text}" if rank is None else f"hsadml: rank {rank}: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
