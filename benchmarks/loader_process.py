"""One reading implementation in its own process: prepare, then run a round per request on stdin."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from loader_variants import WAYS, Setting, batch_stages, distances, parsed, stages


def main() -> None:
    """Run the request of the command line; results are lines of JSON."""
    torch.set_num_threads(1)
    order, setting = parsed(sys.argv[1])
    if order["role"] == "distances":
        _say(distances(setting))
        return
    take = _stage_seconds if order["role"] == "stages" else _timed(WAYS[order["role"]][order["way"]](setting))
    _say({})
    for _ in sys.stdin:
        _say(take(setting))


def _timed(take: Callable[[], object]) -> Callable[[Setting], Any]:
    take()

    def measured(setting: Setting) -> dict[str, float]:
        began = time.process_time()
        take()
        return {"seconds": time.process_time() - began}

    return measured


def _stage_seconds(setting: Setting) -> dict[str, float]:
    """Return the CPU seconds per sample of each stage."""
    seconds = {}
    states: list[Any] = list(range(setting.batch))
    for name, stage in stages(setting):
        began = time.process_time()
        after = [stage(state) for state in states]
        seconds[name] = (time.process_time() - began) / len(states)
        if name != "augment":
            states = after
    for name, stage in batch_stages(setting).items():
        stage(states)
        began = time.process_time()
        stage(states)
        seconds[name] = (time.process_time() - began) / len(states)
    return seconds


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
