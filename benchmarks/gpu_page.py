"""Write ``docs/gpu.md`` from the JSON of ``make gpu``: ``python benchmarks/gpu_page.py [docs/gpu.json]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDED = DOCS / "gpu.json"
"""The run on a GPU that the page shows; there is none until someone had a GPU."""
INTRODUCTION = """\
# On a GPU

`make gpu` proves and measures the training on one GPU, in at most eight minutes. It needs no network: it uses the
torch of the machine (`make gpu PYTHON=python3.12`), and for packages that are missing there the wheels that
`make gpu-wheels` has put into `out/gpu-wheels` (at most 50 MiB, for Python 3.12). Results go to `out/gpu/gpu.json`
after each case, so a run that is cut short keeps what it has. To record a run on this page, copy that file to
`docs/gpu.json` and run `python benchmarks/gpu_page.py`.

Two settings matter on GPUs only. `engine.tf32` (default false) lets fp32 be computed as TF32; without it fp32 is fp32,
unlike PyTorch's own default for convolutions. `engine.deterministic` (default true) takes kernels that repeat their
result; a resumed training then equals one that was never stopped, bit for bit.
"""
NOTHING_YET = "No run on a GPU has been recorded yet; the same cases run small on a CPU in the tests."
COLUMNS = {
    "speed": ("backbone", "mode", "loop", "batch", "images_per_second", "ms", "peak_mib", "tflops", "share_of_peak"),
    "loss speed": ("loss", "ms", "peak_mib"),
}
NOTES = {
    "speed": "Training steps on images that are on the GPU already. `bare` is a plain PyTorch loop of the same network"
    ", with the kernels that PyTorch chooses."
    " The share of the peak counts the operations of forward and backward pass against the dense peak of the data"
    " sheet.",
    "loss speed": "CosFace, forward and backward, batch 1024, 512 components; TITLE classes.",
}
Result = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Write the page of a recorded run, or of none."""
    path = Path(arguments[0]) if arguments else RECORDED
    (DOCS / "gpu.md").write_text(page(json.loads(path.read_text()) if path.exists() else None))


def page(run: Result | None) -> str:
    """Return the page of a run, or of none."""
    parts = [INTRODUCTION, *(sections(run) if run else [NOTHING_YET + "\n"])]
    return "\n".join(parts)


def sections(run: Result) -> Iterator[str]:
    """Yield the facts, the table of cases, and the tables of measurements."""
    cases = {case["name"]: case for case in run["cases"]}
    yield f"## Run of {run['date']}\n\n{facts(run, cases.get('machine', {}).get('figures', {}))}\n"
    columns = ("case", "shows", "result", "s", "figures")
    yield table(columns, [row_of_case(case) for case in run["cases"]])
    for name, columns in COLUMNS.items():
        figures = cases.get(name, {}).get("figures", {})
        if rows := figures.get("rows"):
            note = NOTES[name].replace("TITLE", f"{figures.get('classes', 0):,}")
            cells = [[cell(row.get(column, row.get("reason"))) for column in columns] for row in rows]
            yield f"## {name.capitalize()}\n\n{note}\n\n{table([title.replace('_', ' ') for title in columns], cells)}"


def facts(run: Result, machine: Result) -> str:
    """Return one sentence with device, driver and versions."""
    if "gpu" not in machine:
        return f"On the {run['device'].upper()}{', small sizes' if run['tiny'] else ''}."
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['gpu']} ({machine['memory_gib']} GiB), driver {machine['driver']}, CUDA {machine['cuda']}, "
        f"NCCL {machine['nccl']}; Python {machine['python']}, {versions}; {machine['cpus']} CPUs."
    )


def row_of_case(case: Result) -> list[str]:
    """Return the cells of a case."""
    figures = {key: value for key, value in case.get("figures", {}).items() if isinstance(value, str | int | float)}
    text = "; ".join(f"{key}: {cell(value)}" for key, value in figures.items())
    reason = f"{case['reason']} " if "reason" in case else ""
    return [case["name"], case["about"], case["status"], cell(case.get("seconds")), f"{reason}{text}"]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    cells = [[text.replace("|", "/").replace("\n", " ") for text in row] for row in (titles, *rows)]
    cells.insert(1, ["---"] * len(titles))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def cell(value: Any) -> str:
    """Return a value as text; a dash for none."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
