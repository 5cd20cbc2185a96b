"""Whole trainings of ``make gpu`` by the command line: stop and resume, the loader, and the export."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gpu_cases import Figures, Setup
from PIL import Image

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.errors import ExitCode
from hsadml_dist.evaluation.model_loading import open_inference
from hsadml_dist.run.history import count_repeated_steps, merged_metrics

HSADML = (sys.executable, "-m", "hsadml_dist.launch.cli")
CLASSES = ("glioma", "meningioma", "pituitary")
SECONDS = 300
"""Longest time of a command; a case has its own limit."""


def resume(setup: Setup) -> Figures:
    """Stop a training by TERM and resume it; its state must equal that of one never stopped, bit for bit.

    Two trainings with ``engine.deterministic=false`` show what the setting is for.
    """
    steps = 30 if setup.tiny else 200
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = build_shards(folder, persons=12, size=64)
        recipe = small_recipe(shards, steps)
        hsadml("train", *recipe, "--run", folder / "whole")
        stopped_at = stop_by_term(recipe, folder / "stopped", steps // 3)
        hsadml("train", *recipe, "--run", folder / "stopped")
        whole, stopped = run_digest(folder / "whole"), run_digest(folder / "stopped")
        assert count_repeated_steps(folder / "stopped") == 0
        assert whole == stopped, f"stopped at step {stopped_at}, resumed: {stopped[:12]} is not {whole[:12]}"
        figures: Figures = {"stopped at": stopped_at, "of": steps, "digest": whole[:16], "resumed": "bit-equal"}
        setup.save(figures)
        for number in (1, 2):
            hsadml("train", *recipe, "engine.deterministic=false", "--run", folder / f"free-{number}")
        return figures | {"not deterministic, two runs": compare_weights(folder / "free-1", folder / "free-2")}


def small_recipe(shards: Path, steps: int) -> tuple[str, ...]:
    """Return a recipe of a small network that trains for seconds."""
    return (
        *("demo", f"data.shards={shards}", "data.image_size=32", f"train.steps={steps}", "model.name=resnet_gn_tiny"),
        *("optim.warmup_steps=2", "checkpoint.every=1000", "evaluation.at_end=false", "run.tensorboard=false"),
    )


def compare_weights(one: Path, other: Path) -> str:
    """Return by how much the final weights of two runs differ."""
    if run_digest(one) == run_digest(other):
        return "bit-equal"
    first, second = (open_inference(run).weights.model.state_dict() for run in (one, other))
    difference = max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
    return f"differ by up to {difference:.1e}"


def loader(setup: Setup) -> Figures:
    """Feed a training from shards with more and more workers; return the share of the steps' time that waits."""
    figures: Figures = {}
    steps, workers = (6, (0, 1)) if setup.tiny else (40, (1, 2, 4, 8, 16))
    model = "resnet_gn_tiny" if setup.tiny else "monai_vit_base_16"
    size, batch = (32, 12) if setup.tiny else (224, 96)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = build_shards(folder, persons=12 if setup.tiny else 60, size=size)
        for count in workers:
            if count > (os.cpu_count() or 1):
                continue
            run = folder / f"run-{count}"
            hsadml(
                *("train", "demo", f"data.shards={shards}", f"train.steps={steps}", f"data.workers={count}"),
                *(f"data.image_size={size}", f"train.global_batch={batch}", f"model.name={model}"),
                *("engine.precision=bf16", "data.augmentation=fused", "evaluation.at_end=false"),
                *("run.tensorboard=false", "--run", str(run)),
            )
            rows = merged_metrics(run)[steps // 3 :]
            seconds = sum(row["step_seconds"] for row in rows)
            waited = sum(row["data_wait_seconds"] for row in rows)
            figures[f"{count} workers"] = f"{100 * waited / seconds:.0f} % waits, {batch * len(rows) / seconds:.0f}/s"
            setup.save(figures)
    return figures


def export(setup: Setup) -> Figures:
    """Export a trained network; the command compares the file with the network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = build_shards(folder, persons=12, size=64)
        hsadml("train", *small_recipe(shards, steps=4), "--run", folder / "run")
        hsadml("export", folder / "run", "--format", "torch", "--out", folder / "net.pt2")
        return {"mib": round((folder / "net.pt2").stat().st_size / 2**20, 2)}


def build_shards(folder: Path, *, persons: int, size: int) -> Path:
    """Write noise images with a bright spot by class, and build shards of them."""
    images = folder / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    with (folder / "list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "person", "exam"])
        for person in range(persons):
            for number in range(8):
                pixels = generator.integers(0, 128, (size, size), dtype=np.uint8)
                corner = size // 4 * (person % 3)
                pixels[corner : corner + size // 4] += 100
                name = f"{person}-{number}.png"
                Image.fromarray(pixels).save(images / name)
                table.writerow([name, CLASSES[person % 3], f"person {person}", f"exam {person}"])
    options = ("--images", images, "--size", str(size), "--folds", "3", "--id-key", folder / "id.key")
    hsadml("shards", "build", "table", folder / "list.csv", "--out", folder / "shards", *options)
    return folder / "shards"


def stop_by_term(recipe: tuple[str, ...], run: Path, step: int) -> int:
    """Start a training, send TERM to its launcher after a step, and return the step at which it stopped."""
    process = subprocess.Popen([*HSADML, "train", *recipe, "--run", str(run)])
    end = time.monotonic() + SECONDS
    while not run.exists() or len(merged_metrics(run)) < step:
        assert process.poll() is None, f"the training ended with exit code {process.returncode}"
        assert time.monotonic() < end, f"step {step} not reached within {SECONDS} s"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=SECONDS)
    assert code == ExitCode.STOPPED, f"exit code {code}, expected {int(ExitCode.STOPPED)}"
    return len(merged_metrics(run))


def hsadml(*words: str | Path) -> str:
    """Run the command; return its output."""
    command = [*HSADML, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command[2:5])} ended with {done.returncode}: {done.stderr[-800:]}"
    return done.stdout
