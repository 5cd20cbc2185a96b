"""Compare the margin loss with pytorch-metric-learning, plain autograd and a PartialFC-style implementation.

Each implementation runs in its own process, so that memory can be attributed to it, interleaved in a new random order
for each round. Before timing, all gradients are compared: in fp64 on a small problem, in fp32 on the timed one. Further
cases: bytes sent per step by two ranks, memory of sharded centres on each of four ranks, a million classes on one rank.

Seconds are CPU seconds of the process (on a GPU: the device's own clock). Extra memory is how far the resident set (on
a GPU: the allocated memory) rises during a step above what embeddings, centres and the libraries take beforehand; the
gradient of the centres counts.
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
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from bare_loop import rank_environ
from loss_variants import LOSSES_OF, SEED, WAYS, Answer

LOSSES = ("sphereface", "cosface")
MAIN_RIVAL = "pytorch-metric-learning"
RANKS = 2
MEMORY_RANKS = (1, 4)
TOLERANCE = {"small, fp32": 1e-5, "small, fp64": 1e-12, "measured, fp32": 1e-5}
"""Largest allowed gradient error, relative in the Euclidean norm."""

Case = dict[str, Any]


class Process:
    """A process that runs one implementation."""

    def __init__(self, order: Answer, environ: dict[str, str] | None = None) -> None:
        command = [sys.executable, str(Path(__file__).with_name("loss_process.py")), json.dumps(order)]
        threads = {"OMP_NUM_THREADS": str(order["threads"]), "MKL_NUM_THREADS": str(order["threads"])}
        self._process = subprocess.Popen(
            command,
            env=os.environ | threads | (environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self) -> Answer:
        """Run one step."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Answer:
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
    """Compare gradients, measure, print medians, write JSON."""
    options = read_options()
    cases = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for loss in options.losses:
            errors = equal_gradients(loss, device, options)
            cases += side_by_side(loss, device, errors, options)
    cases += bytes_sent(options)
    cases += centre_memory(options)
    if options.large:
        cases += many_classes(options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(options.threads), "cases": cases}, indent=2)
        options.json.write_text(text + "\n")


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", type=int, default=1_000_000, help="classes of the large case; 0: leave it out")
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES)
    parser.add_argument("--implementations", nargs="+", default=list(WAYS), choices=list(WAYS))
    return parser.parse_args()


def equal_gradients(loss: str, device: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return each implementation's gradient errors; exit if one is too large."""
    process = Process(_order("gradients", loss, device, options, implementations=options.implementations))
    errors: dict[str, dict[str, float]] = process.answer()
    process.end()
    wrong = [
        f"{name} by {error:.1e} ({problem}; allowed {TOLERANCE[problem]:.0e})"
        for problem, each in errors.items()
        for name, error in each.items()
        if not error <= TOLERANCE[problem]
    ]
    if wrong:
        raise SystemExit(f"{loss} on {device}: gradients differ from fp64's: {'; '.join(wrong)}")
    return errors


def side_by_side(
    loss: str, device: str, errors: dict[str, dict[str, float]], options: argparse.Namespace
) -> list[Case]:
    """Run the implementations interleaved; print medians and return the cases of ``--json``."""
    names = [name for name in options.implementations if loss in LOSSES_OF[name]]
    orders = {name: _order("steps", loss, device, options, implementation=name, warm_up=True) for name in names}
    processes = {name: Process(order) for name, order in orders.items()}
    for process in processes.values():
        process.answer()
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    order = random.Random(SEED)
    for _ in range(options.rounds):
        for name in order.sample(names, len(names)):
            answers[name].append(processes[name].ask())
    for process in processes.values():
        process.end()
    title = f"{loss}, {_shape(options)}, fp32, {device}" + (f", {options.threads} thread(s)" if device == "cpu" else "")
    cases = [
        {
            "case": title,
            "implementation": name,
            "seconds": [answer["seconds"] for answer in answers[name]],
            "extra_mib": statistics.median(answer["extra_mib"] for answer in answers[name]),
            "extra_mib_samples": [answer["extra_mib"] for answer in answers[name]],
            "gradient_errors": {problem: each[name] for problem, each in errors.items()},
        }
        for name in names
    ]
    _say_medians(title, cases)
    return cases


def bytes_sent(options: argparse.Namespace) -> list[Case]:
    """Run two ranks over gloo (nccl on GPUs); print and return the bytes each sends per step."""
    answers = _ask_ranks("messages", RANKS, options)
    title = f"messages of a step, {RANKS} ranks, sphereface, {_shape(options)} in all, fp32"
    sys.stdout.write(f"{title}\n")
    for name, answer in answers.items():
        size = answer["sent_bytes"] / 2**20
        sys.stdout.write(f"  {name:24} {size:8.2f} MiB sent by a rank in {answer['messages']} messages\n")
    return [
        {"case": title, "implementation": name} | answer | {"seconds": [answer["seconds"]]}
        for name, answer in answers.items()
    ]


def centre_memory(options: argparse.Namespace) -> list[Case]:
    """Print and return a rank's memory of sharded centres: rows, gradient and AdamW's moments."""
    title = f"what a rank holds of the centres, D {options.dim}, C {options.classes}, fp32, AdamW"
    held = {world: _ask_ranks("centre_memory", world, options)["held_bytes"] for world in MEMORY_RANKS}
    sizes = {world: sum(parts.values()) for world, parts in held.items()}
    sys.stdout.write(f"{title}\n")
    for world, size in sizes.items():
        share = size / sizes[MEMORY_RANKS[0]]
        sys.stdout.write(f"  {f'{world} rank(s)':24} {size / 2**20:8.2f} MiB; {share:.3f} of one rank's\n")
    return [
        {"case": f"{title}, {world} rank(s)", "implementation": "ours-sharded", "seconds": [], "held_bytes": parts}
        for world, parts in held.items()
    ]


def _ask_ranks(role: str, world: int, options: argparse.Namespace) -> Answer:
    """Run a request on all ranks of a job; return rank 0's result."""
    with tempfile.TemporaryDirectory() as folder:
        order = _order(role, "sphereface", "cpu", options, folder=folder)
        token = uuid.uuid4().hex
        ranks = [Process(order, rank_environ(rank, world, token)) for rank in range(world)]
        answer = ranks[0].answer()
        for rank in ranks:
            rank.end()
    return answer


def many_classes(options: argparse.Namespace) -> list[Case]:
    """Print and return the cost of one forward and backward pass, without an optimiser."""
    order = _order("steps", "sphereface", "cpu", options, implementation="ours-stream", warm_up=False)
    process = Process(order | {"classes": options.large})
    process.answer()
    answer = process.ask()
    process.end()
    title = f"sphereface, N {options.batch}, D {options.dim}, C {options.large}, fp32, cpu, {options.threads} thread(s)"
    sys.stdout.write(
        f"{title}\n  {'ours-stream':24} {answer['seconds']:8.2f} s, {answer['extra_mib']:.0f} MiB extra, "
        f"{answer['peak_rss_gib']:.2f} GiB resident at the peak of the whole process\n"
    )
    entry = {"case": title, "implementation": "ours-stream"} | answer
    return [entry | {"seconds": [answer["seconds"]]}]


def machine(threads: int) -> Case:
    """Describe the machine."""
    names = ("torch", MAIN_RIVAL)
    return {
        "processor": _processor(),
        "processor_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "python": platform.python_version(),
    } | {name: metadata.version(name) for name in names if any(metadata.distributions(name=name))}


def _processor() -> str:
    """Return the processor's model name, or its architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _order(role: str, loss: str, device: str, options: argparse.Namespace, **other: Any) -> Answer:
    shape = {"batch": options.batch, "dim": options.dim, "classes": options.classes}
    return {"role": role, "loss": loss, "device": device, "threads": options.threads} | shape | other


def _shape(options: argparse.Namespace) -> str:
    return f"N {options.batch}, D {options.dim}, C {options.classes}"


def _say_medians(title: str, cases: list[Case]) -> None:
    rival = next((case for case in cases if case["implementation"] == MAIN_RIVAL), None)
    sys.stdout.write(f"{title}\n")
    for case in cases:
        seconds = statistics.median(case["seconds"])
        line = f"  {case['implementation']:24} {seconds:8.3f} s, {case['extra_mib']:7.1f} MiB extra"
        if rival is not None:
            time_share = seconds / statistics.median(rival["seconds"])
            line += f"; {time_share:.2f} and {case['extra_mib'] / rival['extra_mib']:.2f} of {MAIN_RIVAL}'s"
        sys.stdout.write(f"{line}; gradient off by {case['gradient_errors']['measured, fp32']:.0e}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
