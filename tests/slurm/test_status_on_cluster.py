"""Runs on a real cluster, looked after by status, watch, logs and cancel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.slurm.devcluster.cluster import Cluster, up
from hsadml_dist.slurm.job_records import read_job_records
from hsadml_dist.slurm.sbatch import JobRequest
from hsadml_dist.slurm.submit import submit
from tests.run.run_factory import make_run
from tests.slurm.cluster_jobs import preempt

ROOT = Path(cli.__file__).parents[3]
FAKE_TRAINING = Path(__file__).with_name("fake_training.py")
STEPS = 20

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def box() -> Iterator[Cluster]:
    """One friendly cluster of two nodes for all tests here."""
    path = Path(tempfile.mkdtemp(prefix="hsadml-test-", dir="/tmp")).resolve()
    with up(path / "box") as cluster:
        yield cluster
    shutil.rmtree(path)


@pytest.fixture
def at_the_cluster(box: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A user whose SLURM_CONF points at a private cluster."""
    for name, value in box.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(folder)
    return box


@pytest.fixture
def request_of(folder: Path) -> Callable[..., JobRequest]:
    """Build a request for one rank whose interpreter plays a training of STEPS steps."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nfor run; do :; done\nexec "{sys.executable}" "{FAKE_TRAINING}" "$run" {STEPS}\n')
    python.chmod(0o755)

    def build(run_dir: Path, **more: Any) -> JobRequest:
        facts = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "job_name": "try", "requeue": "chain", **more}
        return JobRequest(run_dir=run_dir, python=str(python), working_dir=folder, **facts)

    return build


def status(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """Return what status says now."""
    capsys.readouterr()
    assert cli.main(["status", *words, "--json", "--fresh"]) == 0
    return json.loads(capsys.readouterr().out)


def wait_for(capsys: pytest.CaptureFixture[str], run: str, phase: str, seconds: float = 40) -> dict[str, Any]:
    """Return what status says as soon as a run is in a phase."""
    deadline = time.monotonic() + seconds
    while (row := status(capsys, run)[0])["phase"] != phase:
        assert time.monotonic() < deadline, f"not {phase}: {row}"
        time.sleep(0.1)
    return row


def test_a_run_from_queue_to_end(
    at_the_cluster: Cluster, request_of: Callable[..., JobRequest], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(folder / "runs" / "walk", steps=STEPS)
    argv = ["sbatch", "--parsable", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 300"]
    blocker = at_the_cluster.run(argv).stdout.strip()
    first = submit(request_of(run.path))
    row = wait_for(capsys, "runs/walk", "queued")
    assert row["job"] == first
    assert row["text"] in ("queued (Resources)", "queued (Priority)", "queued")

    command = [sys.executable, "-m", "hsadml_dist.launch.cli"]
    watching = subprocess.Popen([*command, "watch", "runs"], stdout=subprocess.PIPE, text=True, env=os.environ)
    following = subprocess.Popen([*command, "logs", "runs/walk", "-f"], stdout=subprocess.PIPE, text=True)
    at_the_cluster.run(["scancel", blocker])
    row = wait_for(capsys, "runs/walk", "running")
    assert (row["job"], row["job_state"], row["attempts"], row["total_steps"]) == (first, "RUNNING", 1, STEPS)
    assert row["job_nodes"] in ("n1", "n2")

    preempt(at_the_cluster)
    row = wait_for(capsys, "runs/walk", "stopped")
    second = read_job_records(run)[1].job
    assert (row["job"], row["over"]) == (second, False)
    assert row["text"].startswith(f"stopped, goes on as job {second}")
    assert row["reason"].startswith("told to stop by SIGUSR2")
    assert 0 < row["checkpoint_step"] == row["step"] < STEPS

    row = wait_for(capsys, "runs/walk", "finished")
    assert (row["step"], row["attempts"], row["over"]) == (STEPS, 2, True)
    said, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    texts = [line.split(": ", 1)[1].partition(",")[0] for line in said.splitlines()]
    assert [text for text in texts if text in ("running", "stopped", "finished")][-1] == "finished"
    assert texts[0].startswith("queued")
    printed, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    steps = [int(line.rpartition(" ")[2]) for line in printed.splitlines() if "fake: step" in line]
    assert steps == list(range(1, STEPS + 1))
    assert [line for line in printed.splitlines() if line.startswith("-- ")][-3:] == [
        "-- attempt 1 --",
        "-- attempt 2 --",
        "-- finished --",
    ]


def test_cancelled_runs_stay_so_links_and_elements(
    at_the_cluster: Cluster, request_of: Callable[..., JobRequest], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = make_run(folder / "runs" / "chain", steps=STEPS)
    elements = tuple(make_run(folder / "runs" / "folds" / f"fold-{fold}", steps=STEPS).path for fold in range(2))
    submit(request_of(chain.path))
    array = submit(request_of(folder / "runs" / "folds", elements=elements, requeue="self"))
    held = tuple(make_run(folder / "held" / f"fold-{fold}", steps=STEPS).path for fold in range(2))
    submit(request_of(folder / "held", elements=held, requeue="self", options=("--hold",)))
    for name in ("chain", "folds/fold-0", "folds/fold-1"):
        wait_for(capsys, f"runs/{name}", "running")
    rows = status(capsys, "runs/folds")
    assert [row["job"] for row in rows] == [f"{array}_0", f"{array}_1"]

    first, second = (link.job for link in read_job_records(chain))
    assert cli.main(["cancel", "runs/chain", "runs/folds"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "cancelled" in line]
    assert told == [
        f"runs/chain: cancelled job {second} (waited)",
        f"runs/chain: cancelled job {first} (ran)",
        f"runs/folds/fold-0: cancelled job {array}_0 (ran)",
        f"runs/folds/fold-1: cancelled job {array}_1 (ran)",
    ]
    assert [row["phase"] for row in status(capsys)] == ["cancelled"] * 3
    assert [row["over"] for row in status(capsys)] == [True] * 3
    assert len(read_job_records(chain)) == 2, "nothing was queued behind it"
    assert cli.main(["cancel", "runs"]) == 0
    assert capsys.readouterr().out.count("no job is left") == 3
    assert cli.main(["status"]) == 0
    assert "3 runs: 3 cancelled" in capsys.readouterr().out
    # Slurm keeps no record of an element that never started.
    assert status(capsys, "held")[0]["text"] == "queued (JobHeldUser)"
    assert cli.main(["cancel", "held"]) == 0
    assert [row["phase"] for row in status(capsys, "held")] == ["cancelled"] * 2


def test_a_job_that_cannot_start_its_ranks_shows_why(
    at_the_cluster: Cluster, request_of: Callable[..., JobRequest], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(folder / "runs" / "one", steps=STEPS)
    request = request_of(run.path, requeue="none")
    (folder / "python").write_text("#!/bin/sh\necho 'hsadml: no module named torch' >&2; exit 1\n")
    job = submit(request)
    row = wait_for(capsys, "runs/one", "failed")
    assert row["reason"].startswith(f"job {job} ended as FAILED (NonZeroExitCode) before the training began")
    assert f"slurm-{job}.out" in row["reason"]
    assert cli.main(["logs", "runs/one"]) == 0
