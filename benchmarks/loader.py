"""Compare reading and augmenting with webdataset plus MONAI, and list the time of each stage.

Each implementation runs in its own process with one thread, interleaved in a new random order for each round. The
shards are built by the benchmark and are in the page cache; only our own order shuffles. Before timing, the pixels of
all implementations are compared under the same seeds. Seconds are CPU seconds of the process per round.

Reading: PNGs of 64 KiB, not decoded. Path: from 256-pixel slices to batches of 112 pixels, with the same transforms of
MONAI (resize by area, normalise, mirror, affine map, scale, shift). The first batch after a resume: from a large
synthetic index that repeats the rows of the shards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from loader_shards import build_noise, build_slices

SEED = 0
RIVALS = ("webdataset-monai", "webdataset-monai-no-meta", "webdataset-monai-lazy")
READING = ("ours", "ours-sha256", "webdataset")
PATH = (*RIVALS, "ours", "ours-fused", "ours-cached", "ours-fused-cached")
RESUME = ("at 10 %", "at 90 %")
MOST_DISTANCE = {"ours-cached": 0.0, "ours-fused": 0.01, "webdataset-monai": 0.0, "webdataset-monai-no-meta": 0.0}
"""Largest allowed pixel difference from ours under the same seed, as a share of the image's range; others: 0.01."""

Case = dict[str, Any]


class Process:
    """A process that runs one implementation."""

    def __init__(self, order: Case, setting: Case) -> None:
        script = str(Path(__file__).with_name("loader_process.py"))
        self._process = subprocess.Popen(
            [sys.executable, script, json.dumps(order | {"setting": setting})],
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self) -> Case:
        """Run one round."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Case:
        """Return its next result."""
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with exit code {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Wait until it has exited."""
        self._process.stdin.close()
        self._process.stdout.close()
        if code := self._process.wait():
            raise SystemExit(f"a process ended with exit code {code}")


def main() -> None:
    """Build shards, compare pixels, measure, print medians, write JSON."""
    options = read_options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = reading(folder, options)
        slices = slices_setting(folder, options)
        refuse_other_pixels(slices)
        cases += path(slices, options)
        cases += time_goes(slices, options)
        cases += resuming(slices, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=2) + "\n")


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--noise", type=int, default=512, help="samples of 64 KiB")
    parser.add_argument("--patients", type=int, default=24, help="generated patients, of about 7 slices each")
    parser.add_argument("--size", type=int, default=256, help="side of a stored slice in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the index of the resumed run")
    return parser.parse_args()


def reading(folder: Path, options: argparse.Namespace) -> list[Case]:
    """Measure reading without decoding."""
    shards = build_noise(folder, options.noise)
    setting = _setting(folder, shards, options.noise, options)
    cases = side_by_side("reading", READING, setting, options, "reading without decoding, 64 KiB a sample")
    say_ratios(cases, [("ours", ("webdataset",), 3), ("ours-sha256", ("webdataset",), None)])
    return cases


def slices_setting(folder: Path, options: argparse.Namespace) -> Case:
    """Build the slices; return the input of the other cases."""
    shards = build_slices(folder, options.patients, options.size)
    count = json.loads((shards / "index.json").read_text())["count"]
    return _setting(folder, shards, count - count % options.batch, options)


def refuse_other_pixels(setting: Case) -> None:
    """Refuse to time implementations whose images differ."""
    process = Process({"role": "distances"}, setting)
    found = process.answer()
    process.end()
    wrong = [f"{name} by {share:.1e}" for name, share in found.items() if not share <= MOST_DISTANCE.get(name, 0.01)]
    if wrong:
        raise SystemExit(f"pixels differ from ours, as a share of the range: {', '.join(wrong)}")
    sys.stdout.write(
        "largest pixel difference from ours: "
        + ", ".join(f"{name} {share:.0e}" for name, share in found.items())
        + "\n"
    )


def path(setting: Case, options: argparse.Namespace) -> list[Case]:
    """Measure the whole path."""
    title = f"whole input path, {options.size} to 112 pixels, batch {options.batch}"
    cases = side_by_side("path", PATH, setting, options, title)
    needed = {"ours": 0.95, "ours-fused-cached": 2}
    say_ratios(cases, [(name, RIVALS, needed.get(name)) for name in PATH if name not in RIVALS])
    return cases


def time_goes(setting: Case, options: argparse.Namespace) -> list[Case]:
    """Print and return the seconds of each stage."""
    process = Process({"role": "stages"}, setting)
    process.answer()
    answers = [process.ask() for _ in range(options.rounds)]
    process.end()
    sys.stdout.write("where the time goes\n")
    for stage in answers[0]:
        milliseconds = 1e3 * statistics.median(answer[stage] for answer in answers)
        sys.stdout.write(f"  {stage:24} {milliseconds:8.3f} ms a sample\n")
    title = "stages of the path"
    return [
        {"case": title, "implementation": stage, "samples": 1, "seconds": [answer[stage] for answer in answers]}
        for stage in answers[0]
    ]


def resuming(setting: Case, options: argparse.Namespace) -> list[Case]:
    """Measure the first batch after a resume, early and late in an epoch."""
    title = f"first batch after a resume, {options.rows} rows, batch {options.batch}"
    cases = side_by_side("resume", RESUME, setting | {"count": options.batch}, options, title)
    early, late = (statistics.median(case["seconds"]) for case in cases)
    sys.stdout.write(f"  at 90 % / at 10 %: {late / early:.2f} (needed: at most 1.2)\n")
    return cases


def side_by_side(
    role: str, ways: tuple[str, ...], setting: Case, options: argparse.Namespace, title: str
) -> list[Case]:
    """Run the implementations interleaved; print medians and return the cases of ``--json``."""
    processes = {way: Process({"role": role, "way": way}, setting) for way in ways}
    for process in processes.values():
        process.answer()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    order = random.Random(SEED)
    for _ in range(options.rounds):
        for way in order.sample(ways, len(ways)):
            seconds[way].append(processes[way].ask()["seconds"])
    for process in processes.values():
        process.end()
    sys.stdout.write(f"{title}\n")
    for way in ways:
        milliseconds = 1e3 * statistics.median(seconds[way]) / setting["count"]
        sys.stdout.write(f"  {way:24} {milliseconds:8.3f} ms a sample\n")
    return [
        {"case": title, "implementation": way, "samples": setting["count"], "seconds": seconds[way]} for way in ways
    ]


def say_ratios(cases: list[Case], wanted: list[tuple[str, tuple[str, ...], float | None]]) -> None:
    """Print the speed of each implementation relative to its fastest rival."""
    medians = {case["implementation"]: statistics.median(case["seconds"]) for case in cases}
    for way, rivals, needed in wanted:
        best = min(rivals, key=medians.__getitem__)
        line = f"  {way}: {medians[best] / medians[way]:.2f} times as fast as {best}"
        sys.stdout.write(line + (f" (needed: {needed})\n" if needed else "\n"))
    sys.stdout.flush()


def machine() -> Case:
    """Describe the machine."""
    names = ("torch", "monai", "webdataset", "pillow", "numpy")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "processor": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), None),
        "processor_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "threads": 1,
        "python": platform.python_version(),
    } | {name: metadata.version(name) for name in names}


def _setting(folder: Path, shards: Path, count: int, options: argparse.Namespace) -> Case:
    paths = {"shards": str(shards), "cache": str(folder / "cache")}
    return paths | {"count": count, "batch": options.batch, "rows": options.rows}


if __name__ == "__main__":
    main()
