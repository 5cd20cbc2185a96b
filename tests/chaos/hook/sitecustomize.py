"""Faults that no signal can make, switched on by files while a training runs: a slow disk, a clock that jumps.

Python imports a module of this name at its start where it lies on PYTHONPATH. Without the folder that
``HSADML_CHAOS_SWITCHES`` names, nothing is changed.

Files in that folder: ``slow-disk`` holds the seconds that every ``os.fsync`` takes longer; ``clock`` the seconds that
``time.time`` is ahead; ``nonfinite`` the key of a sample whose image is not a number.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

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


class _SpoilsBatches(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the loader's module as ever, and then wraps how it delivers batches."""

    MODULE = "hsadml_dist.data.loader"

    def __init__(self, switch: Path) -> None:
        self._switch = switch
        self._found: importlib.machinery.ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.MODULE or self._found is not None:
            return None
        self._found = importlib.machinery.PathFinder.find_spec(fullname, path)
        return importlib.util.spec_from_loader(fullname, self, origin=self._found.origin)

    def exec_module(self, module: ModuleType) -> None:
        self._found.loader.exec_module(module)
        deliver, switch = module.Loader.next, self._switch

        def spoilt(loader: Any, *arguments: Any) -> Any:
            batch = deliver(loader, *arguments)
            key = switch.read_text() if batch is not None and switch.exists() else None
            if key is not None and key in batch.keys:
                batch.image[batch.keys.index(key)] = float("nan")
            return batch

        module.Loader.next = spoilt


if SWITCHES:
    sys.meta_path.insert(0, _SpoilsBatches(Path(SWITCHES) / "nonfinite"))
    _slow_down_the_disk(Path(SWITCHES) / "slow-disk")
    _let_the_clock_jump(Path(SWITCHES) / "clock")
