"""``python -m tests.chaos.run``: the matrix of cuts, the elastic chain and the faults; writes ``chaos.json``."""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos.calm import Grounds
from tests.chaos.cuts import MATRIX, run_cut
from tests.chaos.evidence import Fault, as_document

PARTS = ("cuts",)


def main(arguments: Sequence[str]) -> int:
    """Do all faults; returns 1 if a run was lost."""
    options = _parsed(arguments)
    faults: list[Fault] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hsadml-chaos-") as folder:
        for fault in all_faults(Path(folder), options):
            faults.append(fault)
            _say(_line(fault))
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(as_document(options.seed, machine(), faults))
    lost = [fault for fault in faults if fault.outcome == "lost"]
    kinds = len({fault.kind for fault in faults})
    _say(f"{len(faults)} faults of {kinds} kinds, {len(lost)} lost, {time.monotonic() - began:.0f} s")
    return 1 if lost else 0


def all_faults(folder: Path, options: argparse.Namespace) -> Iterator[Fault]:
    """Do the chosen parts' faults, one after the other; each part draws from a seed of its own."""
    grounds = Grounds.prepare(folder)
    if "cuts" in options.parts:
        for number, cut in enumerate(MATRIX):
            if options.kinds in cut.kind:
                yield run_cut(grounds, cut, random.Random(f"{options.seed} cut {number}"))


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    cores = len(os.sched_getaffinity(0))
    return {
        "cores": cores,
        "python": platform.python_version(),
        "system": platform.platform(),
        "root": os.getuid() == 0,
    }


def _line(fault: Fault) -> str:
    figures = "  ".join(f"{name} {value}" for name, value in fault.figures.items())
    what = f"{fault.outcome:12}{fault.kind:34}step {fault.step!s:5}codes {list(fault.exit_codes)!s:12}"
    return f"{what}{figures}  {fault.detail}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/chaos/chaos.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", default="", help="only faults whose kind holds this text")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
