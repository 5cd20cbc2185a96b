"""A hanging rank ends the run after its time-out, is named in the report, and the next start resumes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.errors import ExitCode
from tests.conftest import Train
from tests.distributed.conftest import Launch
from tests.distributed.training_runs import SETTINGS, event_rows

EVERY = 10


def test_hanging_rank_is_reported_and_run_resumes_from_last_checkpoint(
    shards: Path, baseline_run: Path, launch: Launch, train_to_the_end: Train, tmp_path: Path
) -> None:
    overrides = (f"data.shards={shards}", *SETTINGS)
    job = launch(tmp_path / "run", *overrides, "run.step_timeout_seconds=10")
    job.wait_for_step(EVERY + 2)
    os.kill(job.rank_pid(1), signal.SIGSTOP)
    reached = job.steps()
    assert job.exit_code() == ExitCode.INTERNAL_ERROR
    (hang,) = event_rows(job.run, "hang")
    assert hang["ranks"] == [1]
    assert reached - 1 <= hang["step"] <= reached + 1  # a step has not ended while its sample keys are gathered
    assert "in train_step" in (job.run / "attempts" / "0001" / "logs" / "rank-0000.log").read_text()

    train_to_the_end(job.run, *overrides, nproc=2)
    (resumed,) = event_rows(job.run, "resumed")
    assert resumed["step"] == EVERY
    assert run_digest(job.run) == run_digest(baseline_run)
