"""Fork ranks for tests from one process that has already imported torch, so that a rank starts in milliseconds.

Reads one job per line of stdin, ``{"script", "folder", "world", "case", "preload"}``: calls the functions in
``preload``, each MODULE:NAME, runs ``SCRIPT FOLDER WORLD RANK CASE`` in each rank and prints a line of exit codes. The
stderr of each rank is a file in the folder.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any


def serve() -> None:
    """Run jobs until stdin ends."""
    for name in ("hsadml_dist.engine.learner", "torch._dynamo"):  # the latter is imported by the first optimiser
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        for name in job["preload"]:
            module, _, function = name.partition(":")
            getattr(importlib.import_module(module), function)()
        gc.freeze()  # otherwise the collector copies the memory that a rank shares with this process
        assert len(os.listdir("/proc/self/task")) == 1, "ranks must be forked by a process of one thread"
        pids = [_fork_rank(job, rank) for rank in range(job["world"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def _fork_rank(job: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid == 0:
        _run_rank(job, rank)
    return pid


def _run_rank(job: dict[str, Any], rank: int) -> None:
    code = 70
    try:
        stderr = os.open(Path(job["folder"]) / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT)
        devnull = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, devnull), (1, stderr), (2, stderr)):
            os.dup2(source, target)
        sys.argv = [job["script"], job["folder"], str(job["world"]), str(rank), job["case"]]
        runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except BaseException:  # noqa: BLE001  also an exit in the middle is a failure of the rank
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # gloo's threads sometimes abort a normal interpreter exit.
        os._exit(code)


if __name__ == "__main__":
    serve()
