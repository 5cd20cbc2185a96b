"""One process of ``benchmarks/loss.py``: timed steps, a comparison of gradients, or one rank."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from loss_ranks import centre_memory, messages
from loss_variants import LOSSES_OF, WAYS, Answer, Problem, Way, problem_of, say

from hsadml_dist.losses.distributed_loss import MEBIBYTE

GIBIBYTE = 2**30
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
SMALL = {"batch": 64, "dim": 32, "classes": 501}
"""The problem whose gradients are also compared in fp64."""


def main() -> None:
    """Run the request of the command line; results are lines of JSON."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    roles = {"steps": steps, "gradients": gradients, "messages": messages, "centre_memory": centre_memory}
    roles[order["role"]](order)


def steps(order: Answer) -> None:
    """Run a step per line of stdin; print its cost."""
    way = WAYS[order["implementation"]](problem_of(order))
    if order["warm_up"]:
        way.step()
    say({"ready": True})
    for _ in sys.stdin:
        say(on_gpu(way) if order["device"] == "cuda" else on_cpu(way))


def on_cpu(way: Way) -> Answer:
    """Run a step; return CPU seconds and the rise of the resident set."""
    way.clear()
    gc.collect()
    _give_back_free_memory()
    before, peak_so_far = _resident("VmRSS"), _resident("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the current resident set
    began = time.process_time()
    way.step()
    seconds = time.process_time() - began
    peak = _resident("VmHWM")
    return {
        "seconds": seconds,
        "extra_mib": (peak - before) / MEBIBYTE,
        "peak_rss_gib": max(peak, peak_so_far) / GIBIBYTE,
    }


def on_gpu(way: Way) -> Answer:
    """Run a step; return seconds of the device's clock and the rise of allocated memory."""
    way.clear()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    way.step()
    ended.record()
    torch.cuda.synchronize()
    return {
        "seconds": began.elapsed_time(ended) / 1e3,
        "extra_mib": (torch.cuda.max_memory_allocated() - before) / MEBIBYTE,
    }


def gradients(order: Answer) -> None:
    """Print each implementation's gradient error against an fp64 reference, relative in the Euclidean norm.

    The reference of the small problem is plain autograd; that of the measured one is ours, equal on the small one.
    """
    names = [name for name in order["implementations"] if order["loss"] in LOSSES_OF[name]]
    truth = _gradients("plain-autograd", problem_of(order, **SMALL, dtype=torch.float64))
    answer = {
        f"small, {label}": _errors(names, problem_of(order, **SMALL, dtype=dtype), truth)
        for label, dtype in DTYPES.items()
    }
    truth = _gradients("ours-stream", problem_of(order, dtype=torch.float64))
    answer["measured, fp32"] = _errors(names, problem_of(order), truth)
    say(answer)


def _gradients(name: str, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    way = WAYS[name](problem)
    way.step()
    return way.gradients()


def _errors(names: Sequence[str], problem: Problem, truth: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Return the larger of the two gradient errors of each implementation."""
    errors = {}
    for name in names:
        pairs = zip(_gradients(name, problem), truth, strict=True)
        errors[name] = max(_distance(grad, right) for grad, right in pairs)
    return errors


def _distance(grad: torch.Tensor, right: torch.Tensor) -> float:
    return float((grad.double() - right).norm() / right.norm())


def _resident(entry: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def _give_back_free_memory() -> None:
    """Return free memory of the C library to the system, so that the next step's use is visible."""
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


if __name__ == "__main__":
    main()
