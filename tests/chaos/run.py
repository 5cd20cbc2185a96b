"""Inject faults into real trainings and write ``chaos.json``: ``python -m tests.chaos.run``."""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import damaged_files, environment_faults, hang_faults, signal_faults
from tests.chaos.baseline_runs import Workspace
from tests.chaos.elastic import elastic_chain
from tests.chaos.evidence import Fault, as_document
from tests.chaos.interruptions import MATRIX, run_interruption
from tests.chaos.training_process import TimedOut

PARTS = ("cuts", "faults", "elastic")
MIN_FAULTS, MIN_KINDS = 50, 12

FaultGroup = Callable[[Workspace, random.Random], Iterable[Fault]]


def main(arguments: Sequence[str]) -> int:
    """Inject all faults; return 1 if a run was lost, or if all parts together have too few faults."""
    options = _parse_arguments(arguments)
    # A shell's background job ignores Ctrl-C. The trainings would inherit that and not see the one sent to them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults: list[Fault] = []
    chain: dict[str, Any] | None = None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hsadml-chaos-") as folder:
        workspace = Workspace.prepare(Path(folder))
        for fault in all_faults(workspace, options):
            faults.append(fault)
            _print(_line(fault))
            _write(options, faults, chain)
        if "elastic" in options.parts:
            chain = _elastic(workspace, options.seed)
        _write(options, faults, chain)
    problems = _missing_coverage(faults) if set(options.parts) == set(PARTS) and not options.only else []
    problems += [fault.kind for fault in faults if fault.outcome == "lost"]
    problems += ["elastic chain"] if chain is not None and not chain["good"] else []
    kinds = len({fault.kind for fault in faults})
    seconds = time.monotonic() - began
    _print(f"{len(faults)} faults of {kinds} kinds in {seconds:.0f} s; lost: {', '.join(problems) or 0}")
    return 1 if problems else 0


def all_faults(workspace: Workspace, options: argparse.Namespace) -> Iterator[Fault]:
    """Inject the faults of the chosen parts in sequence; each has a random seed of its own."""
    if "cuts" in options.parts:
        for number, interruption in enumerate(MATRIX):
            if options.only in interruption.kind:
                yield run_interruption(workspace, interruption, random.Random(f"{options.seed} cut {number}"))
    if "faults" in options.parts:
        for group in _fault_groups():
            if options.only in group.__name__:
                _print(f"-- {group.__name__}")
                yield from _run_group(group, workspace, random.Random(f"{options.seed} {group.__name__}"))


def _fault_groups() -> list[FaultGroup]:
    modules = (signal_faults, damaged_files, environment_faults, hang_faults)
    groups: list[FaultGroup] = [group for module in modules for group in module.FAULTS]
    if environment_faults.may_mount():
        return [*groups, *environment_faults.NEED_MOUNTS]
    names = ", ".join(group.__name__ for group in environment_faults.NEED_MOUNTS)
    _print(f"skipped, because file systems cannot be mounted: {names}")
    return groups


def _run_group(group: FaultGroup, workspace: Workspace, rng: random.Random) -> Iterable[Fault]:
    """Run a group of faults; a time-out between its faults counts as a lost fault."""
    try:
        yield from group(workspace, rng)
    except TimedOut as fault:
        name = f"group {group.__name__}"
        yield Fault(kind=name, step=None, pids=(), exit_codes=(), outcome="lost", detail=str(fault))


def _elastic(workspace: Workspace, seed: int) -> dict[str, Any]:
    try:
        chain = elastic_chain(workspace, random.Random(f"{seed} elastic"))
    except TimedOut as fault:
        chain = {"good": False, "detail": str(fault)}
    _print("elastic chain: " + ", ".join(f"{name} {value}" for name, value in chain.items()))
    return chain


def _missing_coverage(faults: Sequence[Fault]) -> list[str]:
    kinds = len({fault.kind for fault in faults})
    problems = [] if len(faults) >= MIN_FAULTS else [f"only {len(faults)} faults, not {MIN_FAULTS}"]
    return problems + ([] if kinds >= MIN_KINDS else [f"only {kinds} kinds, not {MIN_KINDS}"])


def machine() -> dict[str, object]:
    """Return a description of this machine."""
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


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/chaos/chaos.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", default="", help="text in an interruption's kind or in the name of a fault group")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
