"""The cases of ``make gpu`` in order of worth, and what each of them is given."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]


class Unavailable(Exception):
    """A case cannot run here; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a case is given.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tiny: Use sizes that a CPU can do in seconds.
        save: Keeps the figures so far, in case the time limit ends the case.
    """

    device: str
    tiny: bool
    save: Callable[[Figures], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Attributes:
        about: What it shows, in a few words.
        function: MODULE:NAME of a function that takes a :class:`Setup` and returns figures. A failed check raises
            AssertionError.
        limit_seconds: Its time limit on a GPU.
        needed: True if no other case makes sense without it.
    """

    name: str
    about: str
    function: str
    limit_seconds: float
    needed: bool = False

    def load(self) -> Callable[[Setup], Figures]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


CASES = (
    Case(
        name="machine",
        about="device, driver, versions",
        function="gpu_checks:machine",
        limit_seconds=30,
        needed=True,
    ),
    Case(name="losses", about="every loss against fp64", function="gpu_checks:losses", limit_seconds=60),
    Case(name="groups", about="nccl start-up and teardown", function="gpu_checks:groups", limit_seconds=40),
    Case(name="resume", about="TERM in the middle, resumed", function="gpu_training:resume", limit_seconds=120),
    Case(name="guard", about="NaN step, EMA, clipping", function="gpu_checks:guard", limit_seconds=40),
    Case(name="devices", about="checkpoint CPU to GPU and back", function="gpu_checks:devices", limit_seconds=40),
    Case(name="engines", about="DDP, ZeRO 0 to 3", function="gpu_checks:engines", limit_seconds=60),
    Case(name="knn", about="k-NN against the CPU", function="gpu_checks:knn", limit_seconds=30),
    Case(name="speed", about="images/s, memory, share of peak", function="gpu_speed:models", limit_seconds=150),
    Case(name="loss speed", about="loss at a million classes", function="gpu_speed:loss", limit_seconds=40),
    Case(name="step", about="our step beside a bare loop", function="gpu_speed:step", limit_seconds=30),
    Case(name="stall", about="stall of a checkpoint", function="gpu_speed:stall", limit_seconds=40),
    Case(name="loader", about="share of a step that waits", function="gpu_training:loader", limit_seconds=100),
    Case(name="export", about="exported network on the GPU", function="gpu_training:export", limit_seconds=40),
)
