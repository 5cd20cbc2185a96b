"""A fake rank: records its events in the run folder, and exits with 85 when it is signalled to stop.

It is called like the interpreter in the batch script: ``fake_slurm_rank.py -u -m MODULE RUN_DIR``. The file ``plan`` in
the run folder has two numbers: for how many seconds the first start runs, and its exit code. Later starts end at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

STOPPED = 85


def main(arguments: list[str]) -> int:
    run_dir = Path(arguments[-1])
    rows = run_dir / f"rank-{os.environ['SLURM_PROCID']}.jsonl"
    signals: list[int] = []
    # Number of earlier starts, of this job or of earlier links of its chain.
    restart = rows.read_text().count('"started"') if rows.exists() else 0

    def record(event: str, **more: object) -> None:
        row = {"event": event, "restart": restart, "time": time.time(), "node": os.environ["SLURMD_NODENAME"], **more}
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, _frame: signals.append(received))
    record("started", arguments=arguments, env=os.environ.get("HSADML_TEST"), cwd=os.getcwd())
    seconds, code = (run_dir / "plan").read_text().split()
    if restart > 0:
        return finish(run_dir, record)
    if code != "0":
        return fail(run_dir, float(seconds), int(code), record)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        if signals:
            # Real ranks do not exit at the same instant.
            time.sleep(0.1 * int(os.environ["SLURM_PROCID"]))
            record("stopped", signal=signals[0])
            return STOPPED
        time.sleep(0.02)
    return finish(run_dir, record)


def finish(run_dir: Path, record: Callable[[str], None]) -> int:
    """End as after the last step; rank 0 says so in the events of the newest attempt."""
    record("finished")
    if os.environ["SLURM_PROCID"] == "0":
        attempts = sorted((run_dir / "attempts").glob("*"))
        attempt = attempts[-1] if attempts else run_dir / "attempts" / "0001"
        attempt.mkdir(parents=True, exist_ok=True)
        with (attempt / "events.jsonl").open("a") as file:
            file.write('{"event": "finished"}\n')
    return 0


def fail(run_dir: Path, seconds: float, code: int, record: Callable[[str], None]) -> int:
    """Fail once all ranks have started, whatever signals come.

    srun signals the others when the first rank has failed, and its exit code is the largest of all.
    """
    started = 0
    while started < int(os.environ["SLURM_NTASKS"]):
        started = sum('"started"' in path.read_text() for path in run_dir.glob("rank-*.jsonl"))
        time.sleep(0.02)
    time.sleep(seconds)
    record("finished")
    return code


def work(run: str) -> None:
    """Run a fake rank in a launcher that calls a function."""
    code = main([run])
    if code:
        os._exit(code)


if __name__ == "__main__":
    # Like a real rank, not sys.exit: at its end the interpreter restores the default signal handlers, and srun sends
    # TERM to all ranks as soon as the first one has exited.
    os._exit(main(sys.argv[1:]))
