"""Compare softmax and SphereFace on a folder of shards by cross-validation; repeat the command to resume.

    python examples/cross_validation.py person-shards slice-shards --out out/cv

The first folder is trained on all its folds, each further one on its first fold only. Pass the same images split by
exam or by slice there, to show how much such a split inflates every figure. At the end, all runs are compared.
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
    """One training: its shards, loss, test fold and run folder."""

    shards: Path
    loss: str
    fold: int
    run: Path


def main() -> int:
    """Train the runs that are not finished, then evaluate; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path, nargs="+", help="folders of shards; the first is trained on all its folds")
    parser.add_argument("--out", type=Path, default=Path("out/cv"), help="folder of the run folders")
    parser.add_argument("--recipe", default="ce_mri")
    parser.add_argument("--nproc", type=int, default=2, help="processes per training")
    arguments = parser.parse_args()
    planned = list(plan_runs(arguments.shards, arguments.out))
    for number, training in enumerate(planned, start=1):
        if (training.run / "result.json").exists():
            continue
        print(f"training {number} of {len(planned)}: {training.run}", flush=True)
        start = time.monotonic()
        code = train(training, arguments.recipe, arguments.nproc)
        if code:
            return code
        print(f"{training.run}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    return call("evaluate", *(str(training.run) for training in planned), "--combine", str(arguments.out / "combined"))


def plan_runs(folders: list[Path], out: Path) -> Iterator[PlannedRun]:
    """Yield all trainings; those of one fold with different losses follow each other."""
    for position, shards in enumerate(folders):
        index = load_index(shards)
        for fold in index.fold_numbers if position == 0 else index.fold_numbers[:1]:
            for loss in LOSSES:
                run = out / index.split_unit / loss / f"fold-{fold}"
                yield PlannedRun(shards=shards, loss=loss, fold=fold, run=run)


def train(training: PlannedRun, recipe: str, ranks: int) -> int:
    """Train, or resume an interrupted training; return the exit code."""
    settings = [f"data.shards={training.shards}", f"data.fold={training.fold}", f"loss.name={training.loss}"]
    return call("train", recipe, *settings, "--nproc", str(ranks), "--run", str(training.run))


def call(*words: str) -> int:
    """Print a command and run it; return the exit code."""
    print("$ hsadml " + shlex.join(words), flush=True)
    return subprocess.run([*HSADML, *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
