"""Prove and measure the training on one GPU: ``make gpu``, at most eight minutes, on a machine without a network.

The cases run in order of worth, each in a process of its own with a time limit. The results are written after each
case, so a run that is cut short keeps what it has. ``--device cpu --tiny`` runs the same cases small, without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent
sys.path[:0] = [str(BENCHMARKS.parent), str(BENCHMARKS)]

from gpu_wheels import use_wheels  # noqa: E402  the path is set above

from hsadml_dist.atomic import write_text  # noqa: E402

SECONDS = 480.0
"""Time of a whole run."""
Case = dict[str, Any]


def main() -> int:
    """Run the cases, print a line for each, write JSON; return 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("out/gpu/gpu.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all cases (default: %(default)s)")
    parser.add_argument("--only", default="", help="names of cases, separated by commas (default: all)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return be_case(options)
    return run_cases(options)


def run_cases(options: argparse.Namespace) -> int:
    """Run the chosen cases until the time is over."""
    from gpu_cases import CASES

    end = time.monotonic() + options.seconds
    results: list[Case] = []
    for case in CASES:
        if options.only and case.name not in options.only.split(","):
            continue
        left = end - time.monotonic()
        if left < case.limit_seconds / 4:
            result = {"status": "left out", "reason": f"{left:.0f} s were left"}
        else:
            result = run_case(options, case.name, min(left, case.limit_seconds))
        results.append({"name": case.name, "about": case.about, **result})
        sys.stdout.write(line(results[-1]) + "\n")
        sys.stdout.flush()
        write(options, results)
    return 1 if any(result["status"] == "failed" for result in results) else 0


def run_case(options: argparse.Namespace, name: str, limit_seconds: float) -> Case:
    """Run a case in a process of its own and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "result.json", Path(folder) / "stderr"
        command = [sys.executable, __file__, "--case", name, "--json", str(path), "--device", options.device]
        began = time.monotonic()
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [*command, *(["--tiny"] if options.tiny else [])],
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=limit_seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_session(process.pid)
                process.wait()
        seconds = round(time.monotonic() - began, 1)
        tail = errors.read_text(errors="replace")[-2000:]
        result = json.loads(path.read_text()) if path.exists() else {}
        if code is None:
            result |= {"status": "cut short", "reason": f"longer than {limit_seconds:.0f} s"}
        elif code != 0:  # also after figures were kept
            result |= {"status": "failed", "reason": f"exit code {code}", "output": tail}
        return result | {"seconds": seconds}


def end_session(pid: int) -> None:
    """Kill all processes that a case has started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def be_case(options: argparse.Namespace) -> int:
    """Run one case in this process."""
    use_wheels()
    from gpu_cases import CASES, Setup, Unavailable

    (case,) = [case for case in CASES if case.name == options.case]
    setup = Setup(device=options.device, tiny=options.tiny, save=lambda figures: keep(options.json, figures))
    try:
        figures = case.load()(setup)
    except Unavailable as reason:
        options.json.write_text(json.dumps({"status": "unavailable", "reason": str(reason)}))
        return 0
    options.json.write_text(json.dumps({"status": "passed", "figures": figures}))
    return 0


def keep(path: Path, figures: dict[str, Any]) -> None:
    """Keep the figures so far of a case that may be cut short."""
    path.write_text(json.dumps({"status": "cut short", "figures": figures}))


def write(options: argparse.Namespace, results: list[Case]) -> None:
    """Write all results so far."""
    facts = {"date": datetime.date.today().isoformat(), "device": options.device, "tiny": options.tiny}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.json, json.dumps(facts | {"cases": results}, indent=2) + "\n")


def line(result: Case) -> str:
    """Return a result as one line."""
    text = result.get("reason") or ", ".join(f"{key} {value}" for key, value in headline(result).items())
    return f"{result['name']:22}{result['status']:12}{result.get('seconds', 0):6.1f} s  {text}"[:160]


def headline(result: Case) -> dict[str, Any]:
    """Return the figures of a result that fit a line."""
    figures = result.get("figures", {})
    return {key: value for key, value in figures.items() if isinstance(value, str | int | float)}


if __name__ == "__main__":
    sys.exit(main())
