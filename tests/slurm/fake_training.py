"""A fake training: starts an attempt, writes a row every 0.1 s, and exits with 85 when it is signalled to stop.

``fake_training.py RUN STEPS`` resumes at the step of the last checkpoint and finishes after STEPS steps. The first
attempt stops halfway and waits for a signal, so that it cannot finish earlier, however slow the machine is.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from pathlib import Path

from hsadml_dist.atomic import write_text
from hsadml_dist.health.heartbeat import AttemptHeartbeat
from hsadml_dist.run.attempts import current_holder, start_attempt
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import EventLog, merged_events
from hsadml_dist.run.jsonl import JsonlWriter
from hsadml_dist.run.trackers import configure_rank_logging

STEP_SECONDS = 0.1
STOPPED = 85


def main(path: str, steps: int) -> int:
    signals: list[str] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, _frame: signals.append(signal.Signals(received).name))
    run, me = RunFolder(Path(path)), current_holder("fake")
    saved = [row for row in merged_events(run.path) if row["event"] == "checkpoint"]
    attempt = start_attempt(run, me, {"world_size": 1})
    configure_rank_logging(attempt, 0)
    log = logging.getLogger("fake")
    events, rows, heartbeat = (
        EventLog(attempt, me.job, me.restart),
        JsonlWriter(attempt.metrics),
        AttemptHeartbeat(attempt.heartbeat),
    )
    events.write("started", 0)
    write_text(attempt.parent, json.dumps({"checkpoint": saved[-1]["checkpoint"] if saved else None}))
    step = saved[-1]["step"] if saved else 0
    last = steps // 2 if attempt.number == 1 else steps
    while (step < last or last < steps) and not signals:
        time.sleep(STEP_SECONDS)
        if step == last:
            continue
        step += 1
        rows.write(
            {"step": step, "attempt": attempt.number, "loss": 1 / step, "samples": 8, "step_seconds": STEP_SECONDS}
        )
        log.info("step %d", step)
    events.write("checkpoint", step, checkpoint=f"step-{step:08d}.attempt-{attempt.number:04d}")
    if signals:
        events.write("signal", step, noticed=[f"rank 0: {signals[0]}"])
    events.write("stopped" if signals else "finished", step)
    heartbeat.close()
    return STOPPED if signals else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
