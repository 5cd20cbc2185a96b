"""Faults that no signal can make, switched on by files while a training runs: a slow disk, a clock that jumps.

Python imports a module of this name at its start where it lies on PYTHONPATH. Without the folder that
``HSADML_CHAOS_SWITCHES`` names, nothing is changed.

Files in that folder: ``slow-disk`` holds the seconds that every ``os.fsync`` takes longer; ``clock`` the seconds that
``time.time`` is ahead.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SWITCHES = os.environ.get("HSADML_CHAOS_SWITCHES")


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0.0


def _slow_down_the_disk(switch: Path) -> None:
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(_number(switch))
        fsync(descriptor)

    os.fsync = slow


def _let_the_clock_jump(switch: Path) -> None:
    clock = time.time

    def jumping() -> float:
        return clock() + _number(switch)

    time.time = jumping


if SWITCHES:
    _slow_down_the_disk(Path(SWITCHES) / "slow-disk")
    _let_the_clock_jump(Path(SWITCHES) / "clock")
