"""Softmax against SphereFace on a folder of shards, fold by fold; stopped at any point, the same command goes on.

    python examples/cross_validation.py person-shards slice-shards --out out/cv

The first folder is trained on all its folds, each further one on its first fold only: the same images split by exam or
by slice, to show what such a split adds to every figure. All runs are then judged together.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.data.index import load_index

HSADML = [sys.executable, "-m", "hsadml_dist.launch.cli"]
LOSSES = ("softmax", "sphereface")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training: its shards, its loss, the fold that it holds out, and where it goes."""

    shards: Path
    loss: str
    fold: int
    run: Path


def main() -> int:
    """Train what is not trained yet, then judge; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path, nargs="+", help="folders of shards; all folds of the first are trained")
    parser.add_argument("--out", type=Path, default=Path("out/cv"), help="where the run folders go")
    parser.add_argument("--recipe", default="ce_mri")
    parser.add_argument("--nproc", type=int, default=2, help="processes a training")
    arguments = parser.parse_args()
    plans = list(plan(arguments.shards, arguments.out))
    for number, one in enumerate(plans, start=1):
        if (one.run / "result.json").exists():
            continue
        print(f"training {number} of {len(plans)}: {one.run}", flush=True)
        began = time.monotonic()
        code = train(one, arguments.recipe, arguments.nproc)
        if code:
            return code
        print(f"{one.run}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return call("evaluate", *(str(one.run) for one in plans), "--combine", str(arguments.out / "combined"))


def plan(folders: list[Path], out: Path) -> Iterator[PlannedRun]:
    """Yield all trainings, the losses of one fold after one another."""
    for place, shards in enumerate(folders):
        index = load_index(shards)
        for fold in index.fold_numbers if place == 0 else index.fold_numbers[:1]:
            for loss in LOSSES:
                run = out / index.split_unit / loss / f"fold-{fold}"
                yield PlannedRun(shards=shards, loss=loss, fold=fold, run=run)


def train(one: PlannedRun, recipe: str, ranks: int) -> int:
    """Train, or go on where a former start was stopped."""
    settings = [f"data.shards={one.shards}", f"data.fold={one.fold}", f"loss.name={one.loss}"]
    return call("train", recipe, *settings, "--nproc", str(ranks), "--run", str(one.run))


def call(*words: str) -> int:
    """Say a command and run it."""
    print("$ hsadml " + shlex.join(words), flush=True)
    return subprocess.run([*HSADML, *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
