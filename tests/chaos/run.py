"""``python -m tests.chaos.run``: the matrix of cuts, the elastic chain and the other faults; writes ``chaos.json``."""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import damaged_files as damaged
from tests.chaos import environment_faults as surrounded
from tests.chaos import hang_faults as stuck
from tests.chaos import signal_faults as told
from tests.chaos.baseline_runs import Workspace
from tests.chaos.elastic import elastic_chain
from tests.chaos.evidence import Fault, as_document
from tests.chaos.interruptions import MATRIX, run_cut
from tests.chaos.training_process import TimedOut

PARTS = ("cuts", "faults", "elastic")
LEAST_FAULTS, LEAST_KINDS = 50, 12

Story = Callable[[Workspace, random.Random], Iterable[Fault]]


def main(arguments: Sequence[str]) -> int:
    """Do all faults; returns 1 if a run was lost, or if all parts together hold too few faults."""
    options = _parsed(arguments)
    faults: list[Fault] = []
    chain: dict[str, Any] | None = None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hsadml-chaos-") as folder:
        grounds = Workspace.prepare(Path(folder))
        for fault in all_faults(grounds, options):
            faults.append(fault)
            _say(_line(fault))
            _write(options, faults, chain)
        if "elastic" in options.parts:
            chain = _elastic(grounds, options.seed)
        _write(options, faults, chain)
    problems = _too_little(faults) if set(options.parts) == set(PARTS) and not options.only else []
    problems += [fault.kind for fault in faults if fault.outcome == "lost"]
    problems += ["elastic chain"] if chain is not None and not chain["good"] else []
    kinds = len({fault.kind for fault in faults})
    _say(f"{len(faults)} faults of {kinds} kinds in {time.monotonic() - began:.0f} s; lost: {', '.join(problems) or 0}")
    return 1 if problems else 0


def all_faults(grounds: Workspace, options: argparse.Namespace) -> Iterator[Fault]:
    """Do the chosen parts' faults one after the other; each draws from a seed of its own."""
    if "cuts" in options.parts:
        for number, cut in enumerate(MATRIX):
            if options.only in cut.kind:
                yield run_cut(grounds, cut, random.Random(f"{options.seed} cut {number}"))
    if "faults" in options.parts:
        for story in _stories():
            if options.only in story.__name__:
                _say(f"-- {story.__name__}")
                yield from _told(story, grounds, random.Random(f"{options.seed} {story.__name__}"))


def _stories() -> list[Story]:
    stories: list[Story] = [*told.FAULTS, *damaged.FAULTS, *surrounded.FAULTS, *stuck.FAULTS]
    if surrounded.may_mount():
        return [*stories, *surrounded.NEED_MOUNTS]
    names = ", ".join(story.__name__ for story in surrounded.NEED_MOUNTS)
    _say(f"skipped, since nothing can be mounted here: {names}")
    return stories


def _told(story: Story, grounds: Workspace, draw: random.Random) -> Iterable[Fault]:
    """Do a story; one that gets stuck between its faults is a lost one."""
    try:
        yield from story(grounds, draw)
    except TimedOut as fault:
        name = f"story {story.__name__}"
        yield Fault(kind=name, step=None, pids=(), exit_codes=(), outcome="lost", detail=str(fault))


def _elastic(grounds: Workspace, seed: int) -> dict[str, Any]:
    try:
        chain = elastic_chain(grounds, random.Random(f"{seed} elastic"))
    except TimedOut as fault:
        chain = {"good": False, "detail": str(fault)}
    _say("elastic chain: " + ", ".join(f"{name} {value}" for name, value in chain.items()))
    return chain


def _too_little(faults: Sequence[Fault]) -> list[str]:
    kinds = len({fault.kind for fault in faults})
    problems = [] if len(faults) >= LEAST_FAULTS else [f"only {len(faults)} faults, not {LEAST_FAULTS}"]
    return problems + ([] if kinds >= LEAST_KINDS else [f"only {kinds} kinds, not {LEAST_KINDS}"])


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": platform.platform(),
        "root": os.getuid() == 0,
    }


def _write(options: argparse.Namespace, faults: Sequence[Fault], chain: dict[str, Any] | None) -> None:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(as_document(options.seed, machine(), faults, elastic=chain))


def _line(fault: Fault) -> str:
    figures = "  ".join(f"{name} {value}" for name, value in fault.figures.items())
    what = f"{fault.outcome:12}{fault.kind:52} step {fault.step!s:5}codes {list(fault.exit_codes)!s:12}"
    return f"{what}{figures}  {fault.detail}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/chaos/chaos.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", default="", help="cuts whose kind, and stories whose name, hold this text")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
