"""Prove and measure the training on one GPU: ``make gpu``, at most eight minutes, on a machine without a network.

The cases run in order of worth, each in a process of its own with a time limit. The results are written after each
case, so a run that is cut short keeps what it has. ``--device cpu --tiny`` runs the same cases small, without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCHMARKS.parent), str(BENCHMARKS)]

from gpu_cases import CASES, Case, Setup, Unavailable  # noqa: E402  the path is set above
from gpu_wheels import use_wheels  # noqa: E402

SECONDS = 480.0
"""Time of a whole run."""
WIDTH = 160
CPU_SLOWDOWN = 10
"""How much longer a case may take on a CPU, in its small size, than on a GPU."""
Result = dict[str, Any]


def main() -> int:
    """Run the cases, print a line for each, write JSON; return 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("out/gpu/gpu.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all cases (default: %(default)s)")
    parser.add_argument("--only", default="", help="names of cases, separated by commas (default: all)")
    options = parser.parse_args()
    names = [case.name for case in CASES]
    wanted = options.only.split(",") if options.only else names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"--only {unknown[0]}: no such case; allowed: {', '.join(names)}")
    use_wheels()
    preload()
    return run_cases(options, [case for case in CASES if case.name in wanted])


def preload() -> None:
    """Import what all cases need, without touching the GPU: forked processes then start at once."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads do not survive a fork
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # nor does CUDA, which a mere look would start
    import hsadml_dist.trainer  # noqa: F401


def run_cases(options: argparse.Namespace, cases: Sequence[Case]) -> int:
    """Run the cases until the time is over or one fails that all need; return 1 if one failed."""
    end = time.monotonic() + options.seconds
    results: list[Result] = []
    needed = ""
    for case in cases:
        left = end - time.monotonic()
        limit = case.limit_seconds * (CPU_SLOWDOWN if options.device == "cpu" else 1)
        if needed or left < case.limit_seconds / 4:
            result = {"status": "left out", "reason": needed or f"{left:.0f} s were left"}
        else:
            result = run_case(case, options, min(left, limit))
        if case.needed and result["status"] != "passed":
            needed = f"{case.name} did not pass"
        results.append({"name": case.name, "about": case.about, **result})
        sys.stdout.write(line(results[-1]) + "\n")
        sys.stdout.flush()
        write(options, results)
    return 1 if any(result["status"] == "failed" for result in results) else 0


def run_case(case: Case, options: argparse.Namespace, limit_seconds: float) -> Result:
    """Run a case in a process of its own and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "result.json", Path(folder) / "output"
        output.touch()
        began = time.monotonic()
        process = multiprocessing.get_context("fork").Process(target=be_case, args=(case, options, path, output))
        process.start()
        process.join(limit_seconds)
        code = process.exitcode
        end_session(process)
        seconds = round(time.monotonic() - began, 1)
        result = json.loads(path.read_text()) if path.exists() else {}
        if code is None:
            result |= {"status": "cut short", "reason": f"longer than {limit_seconds:.0f} s"}
        elif code != 0:  # also after figures were kept
            tail = output.read_text(errors="replace")[-2000:]
            result |= {"status": "failed", "reason": tail.strip().splitlines()[-1] if tail else f"exit code {code}"}
            result |= {"output": tail}
        return result | {"seconds": seconds}


def end_session(process: multiprocessing.process.BaseProcess) -> None:
    """Kill a case and all processes that it has started."""
    assert process.pid, "the process was started"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def be_case(case: Case, options: argparse.Namespace, path: Path, output: Path) -> None:
    """Run one case in this process, which leads a session of its own; an error ends it with a traceback and code 1."""
    os.setsid()
    sys.stdout = sys.stderr = output.open("a", buffering=1)
    for descriptor in (1, 2):  # for its child processes
        os.dup2(sys.stdout.fileno(), descriptor)
    setup = Setup(device=options.device, tiny=options.tiny, save=lambda figures: keep(path, figures))
    use_default_kernels(options.device)
    try:
        figures = case.load()(setup)
    except Unavailable as reason:
        path.write_text(json.dumps({"status": "unavailable", "reason": str(reason)}))
        return
    path.write_text(json.dumps({"status": "passed", "figures": figures}))


def use_default_kernels(device: str) -> None:
    """Compute as a training with the default settings does."""
    import torch

    from hsadml_dist.config.recipe import EngineConfig
    from hsadml_dist.distributed.device import configure_kernels

    engine = EngineConfig()
    configure_kernels(torch.device(device), tf32=engine.tf32, deterministic=engine.deterministic)


def keep(path: Path, figures: dict[str, Any]) -> None:
    """Keep the figures so far of a case that may be cut short."""
    path.write_text(json.dumps({"status": "cut short", "figures": figures}))


def write(options: argparse.Namespace, results: list[Result]) -> None:
    """Write all results so far."""
    from hsadml_dist.atomic import write_text

    facts = {"date": datetime.date.today().isoformat(), "device": options.device, "tiny": options.tiny}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.json, json.dumps(facts | {"cases": results}, indent=2) + "\n")


def line(result: Result) -> str:
    """Return a result as one line."""
    text = result.get("reason") or ", ".join(f"{key} {value}" for key, value in headline(result).items())
    return f"{result['name']:12}{result['status']:12}{result.get('seconds', 0):6.1f} s  {text}"[:WIDTH]


def headline(result: Result) -> dict[str, Any]:
    """Return the figures of a result that fit a line."""
    figures = result.get("figures", {})
    return {key: value for key, value in figures.items() if isinstance(value, str | int | float)}


if __name__ == "__main__":
    sys.exit(main())
