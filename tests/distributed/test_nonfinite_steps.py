"""A training of two ranks on samples that a transform occasionally scales to infinity."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.history import merged_events, merged_ledger, merged_metrics
from tests.conftest import Train
from tests.distributed.training_runs import HANG_SECONDS, HSADML

STEPS = 14
"""Enough steps that some are finite and some are not, whatever the keys of the samples."""

TOO_BRIGHT = "[{_target_: monai.transforms.RandScaleIntensity, factors: [3.0e+38, 3.1e+38], prob: 0.06}]"
SETTINGS = (
    "model.name=resnet_gn_tiny",
    "model.embedding_dim=8",
    "data.image_size=32",
    f"data.transforms={TOO_BRIGHT}",
    f"train.steps={STEPS}",
    f"train.skip_limit={STEPS}",
    "train.global_batch=12",
    "evaluation.at_end=false",
    "run.tensorboard=false",
    "run.ledger=true",
)


def test_on_nonfinite_stop_ends_all_ranks_and_skip_resumes(
    tiny_shards: Path, train_to_the_end: Train, tmp_path: Path
) -> None:
    run, overrides = tmp_path / "run", (f"data.shards={tiny_shards}", *SETTINGS)
    command = [*HSADML, "train", "demo", *overrides, "--nproc", "2", "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == ExitCode.USER_ERROR, done.stderr
    (failed,) = [row for row in merged_events(run) if row["event"] == "failed"]
    lines = [re.fullmatch(r"hsadml: rank (\d): (.*)", line) for line in done.stderr.splitlines()]
    assert sorted(line[1] for line in lines if line and failed["reason"] in line[2]) == ["0", "1"], done.stderr

    train_to_the_end(run, *overrides, "train.on_nonfinite=skip", nproc=2)
    rows, events = merged_metrics(run), merged_events(run)
    skipped = [row for row in events if row["event"] == "skipped"]
    first = skipped[0]
    assert all(f"step {first['step']}:" in row["reason"] for row in (failed, first)), (
        "skip repeats the step that failed"
    )
    assert [row["step"] for row in events if row["event"] == "resumed"] == [first["step"] - 1] * (first["step"] > 1)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if not math.isfinite(row["loss"])] == [row["step"] for row in skipped]
    assert len(skipped) < STEPS, "some steps must be finite"
    taken = {row["step"]: row["keys"] for row in merged_ledger(run)}
    for row in skipped:
        assert row["keys"] == taken[row["step"]]
        assert row["suspects"]
        assert {suspect["key"] for suspect in row["suspects"]} <= set(row["keys"])
        assert {suspect["what"] for suspect in row["suspects"]} == {"image"}
