"""The files that jobs leave in a run folder."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm.job_records import (
    JOBS_FILE,
    DeclineReason,
    JobRecord,
    read_decline,
    read_job_records,
    record_job,
)


def test_read_job_records_keeps_the_order_of_all_writers(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    began = time.time()
    record_job(run, "12", "chain")
    # As the batch script does.
    line = '{"job": "13", "requeue": "chain", "after": "12", "backend": "sbatch", "time": 2.5}'
    subprocess.run(["sh", "-c", f"printf '%s\\n' '{line}' >>{tmp_path / JOBS_FILE}"], check=True)
    record_job(run, "14_3", "self", "submitit")
    first, second, third = read_job_records(run)
    assert (first.job, first.requeue, first.after, first.backend) == ("12", "chain", None, "sbatch")
    assert began <= first.time <= time.time()
    assert second == JobRecord(job="13", requeue="chain", after="12", time=2.5)
    assert (third.job, third.requeue, third.backend) == ("14_3", "self", "submitit")
    assert all(json.loads(text) for text in (tmp_path / JOBS_FILE).read_text().splitlines())


def test_read_job_records_of_a_run_without_jobs_is_empty(tmp_path: Path) -> None:
    assert read_job_records(RunFolder(tmp_path)) == []


@pytest.mark.parametrize("reason", DeclineReason)
def test_read_decline_returns_the_code(tmp_path: Path, reason: DeclineReason) -> None:
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended" / "13.declined").write_text(f"{reason}\n")
    assert read_decline(RunFolder(tmp_path), "13") is reason


def test_read_decline_without_a_known_code_returns_none(tmp_path: Path) -> None:
    assert read_decline(RunFolder(tmp_path), "13") is None
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended" / "13.declined").write_text("because\n")
    assert read_decline(RunFolder(tmp_path), "13") is None
