"""A rank in miniature: writes what happens to it into the run folder, and leaves with 85 when it is told to stop.

Called as the batch script calls the interpreter: ``fake_rank.py -u -m MODULE RUN_DIR``. The run folder's ``plan``
holds two numbers: how many seconds the first attempt works, and the exit code at its end. Later attempts end at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    run_dir = Path(arguments[-1])
    rows = run_dir / f"rank-{os.environ['SLURM_PROCID']}.jsonl"
    told: list[int] = []
    # Of a restart or of a link of a chain: how often it was started before.
    restart = rows.read_text().count('"started"') if rows.exists() else 0

    def note(event: str, **more: object) -> None:
        row = {"event": event, "restart": restart, "time": time.time(), "node": os.environ["SLURMD_NODENAME"], **more}
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, _frame: told.append(received))
    note("started", arguments=arguments, env=os.environ.get("HSADML_TEST"), cwd=os.getcwd())
    seconds, code = (run_dir / "plan").read_text().split()
    end = time.monotonic() + (float(seconds) if restart == 0 else 0.0)
    while time.monotonic() < end:
        if told:
            # Ranks do not leave in the same instant.
            time.sleep(0.1 * int(os.environ["SLURM_PROCID"]))
            note("stopped", signal=told[0])
            return 85
        time.sleep(0.02)
    note("finished")
    return int(code) if restart == 0 else 0


def work(run: str) -> None:
    """Play a rank for a starter that calls a function."""
    code = main([run])
    if code:
        os._exit(code)


if __name__ == "__main__":
    # Not sys.exit, as in a real rank: the interpreter's end gives signals their default meaning back, and srun sends
    # TERM to all as soon as the first rank has left.
    os._exit(main(sys.argv[1:]))
