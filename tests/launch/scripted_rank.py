"""A rank that behaves as its JSON script says: {"0": {"code": 0, "after": 0.1, "term": 85, "self": "KILL"}, ...}.

The last argument is the run folder, in which each rank records its environment. ``term`` is the exit code after a
forwarded signal; null ignores signals.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

run = Path(sys.argv[-1])
rank = os.environ["RANK"]
plan = {"code": 0, "after": 0.0, "term": 85, "self": None} | json.loads(sys.argv[1]).get(rank, {})


def record(number, frame):
    with open(run / f"signals-{rank}", "a") as file:
        file.write(f"{signal.Signals(number).name}\n")
    if plan["term"] is not None:
        os._exit(plan["term"])


for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, record)
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "HSADML_LAUNCH", "PYTHONPATH", "EXTRA")
facts = {name: os.environ.get(name) for name in names}
facts |= {"pid": os.getpid(), "sid": os.getsid(0), "stdin": sys.stdin.read()}
(run / f".started-{rank}").write_text(json.dumps(facts))
(run / f".started-{rank}").rename(run / f"started-{rank}")
time.sleep(plan["after"])
if plan["self"]:
    os.kill(os.getpid(), getattr(signal, f"SIG{plan['self']}"))
sys.exit(plan["code"])
