"""Faults that signals cannot cause, switched on by files while a training runs: a slow disk, a clock that jumps.

Python imports a module of this name from PYTHONPATH when it starts. Without the environment variable
``HSADML_CHAOS_SWITCHES``, the folder of the switches, it changes nothing.

Files in that folder: ``slow-disk``: seconds by which every ``os.fsync`` is delayed; ``clock``: seconds by which
``time.time`` is ahead; ``nonfinite``: key of a sample whose image becomes NaN.
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


def _delay_fsync(switch: Path) -> None:
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(_number(switch))
        fsync(descriptor)

    os.fsync = slow


def _shift_clock(switch: Path) -> None:
    clock = time.time

    def shifted() -> float:
        return clock() + _number(switch)

    time.time = shifted


class _NanBatches(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the loader's module and wraps the method that returns batches."""

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
        next_batch, switch = module.Loader.next, self._switch

        def next_with_nan(loader: Any, *arguments: Any) -> Any:
            batch = next_batch(loader, *arguments)
            key = switch.read_text() if batch is not None and switch.exists() else None
            if key is not None and key in batch.keys:
                batch.image[batch.keys.index(key)] = float("nan")
            return batch

        module.Loader.next = next_with_nan


if SWITCHES:
    sys.meta_path.insert(0, _NanBatches(Path(SWITCHES) / "nonfinite"))
    _delay_fsync(Path(SWITCHES) / "slow-disk")
    _shift_clock(Path(SWITCHES) / "clock")
