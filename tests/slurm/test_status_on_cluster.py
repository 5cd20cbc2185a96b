"""``hsadml status``, ``watch``, ``logs`` and ``cancel`` with runs on a real cluster."""

from __future__ import annotations

import json
import os
import re
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
def shared_cluster() -> Iterator[Cluster]:
    """One friendly cluster of two nodes for all tests of this module."""
    path = Path(tempfile.mkdtemp(prefix="hsadml-test-", dir="/tmp")).resolve()
    with up(path / "cluster") as cluster:
        yield cluster
    shutil.rmtree(path)


@pytest.fixture
def cluster_env(shared_cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Point SLURM_CONF at the shared cluster, and work in a folder of the test."""
    for name, value in shared_cluster.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(folder)
    return shared_cluster


@pytest.fixture
def request_of(folder: Path) -> Callable[..., JobRequest]:
    """Build a request for one rank that runs a fake training of STEPS steps."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nfor run; do :; done\nexec "{sys.executable}" "{FAKE_TRAINING}" "$run" {STEPS}\n')
    python.chmod(0o755)

    def build(run_dir: Path, **more: Any) -> JobRequest:
        facts = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "job_name": "try", "requeue": "chain", **more}
        return JobRequest(run_dir=run_dir, python=str(python), working_dir=folder, **facts)

    return build


def status(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """Return the rows of ``hsadml status --json --fresh``."""
    capsys.readouterr()
    assert cli.main(["status", *words, "--json", "--fresh"]) == 0
    return json.loads(capsys.readouterr().out)


def wait_for_phase(capsys: pytest.CaptureFixture[str], run: str, phase: str, seconds: float = 180) -> dict[str, Any]:
    """Wait until a run is in a phase and return its row."""
    deadline = time.monotonic() + seconds
    while (row := status(capsys, run)[0])["phase"] != phase:
        assert time.monotonic() < deadline, f"not {phase}: {row}"
        time.sleep(0.1)
    return row


def test_status_watch_and_logs_follow_a_preempted_chain(
    cluster_env: Cluster, request_of: Callable[..., JobRequest], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(folder / "runs" / "walk", steps=STEPS)
    blocker = preempt(cluster_env, seconds=3000)
    first = submit(request_of(run.path))
    row = wait_for_phase(capsys, "runs/walk", "queued")
    assert row["job"] == first

    command = [sys.executable, "-m", "hsadml_dist.launch.cli"]
    watching = subprocess.Popen([*command, "watch", "runs"], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert "queued" in watching.stdout.readline()
    following = subprocess.Popen([*command, "logs", "runs/walk", "-f"], stdout=subprocess.PIPE, text=True)
    cluster_env.run(["scancel", blocker])
    row = wait_for_phase(capsys, "runs/walk", "running")
    assert (row["job"], row["job_state"], row["attempts"], row["total_steps"]) == (first, "RUNNING", 1, STEPS)
    assert row["job_nodes"] in ("n1", "n2")

    blocker = preempt(cluster_env, seconds=3000)
    row = wait_for_phase(capsys, "runs/walk", "stopped")
    cluster_env.run(["scancel", blocker])
    second = read_job_records(run)[1].job
    assert (row["job"], row["over"]) == (second, False)
    assert "SIGUSR2" in row["reason"]
    assert 0 < row["checkpoint_step"] == row["step"] < STEPS

    row = wait_for_phase(capsys, "runs/walk", "finished")
    assert (row["step"], row["attempts"], row["over"]) == (STEPS, 2, True)
    changes, _ = watching.communicate(timeout=300)
    assert watching.returncode == 0
    assert "finished" in changes.splitlines()[-1]
    printed, _ = following.communicate(timeout=300)
    assert following.returncode == 0
    steps = [int(line.rpartition(" ")[2]) for line in printed.splitlines() if "fake: step" in line]
    assert steps == list(range(1, STEPS + 1))
    assert re.search("attempt 1\\b.*attempt 2\\b.*finished", printed, flags=re.DOTALL)


def test_cancel_ends_all_links_and_elements(
    cluster_env: Cluster, request_of: Callable[..., JobRequest], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = make_run(folder / "runs" / "chain", steps=STEPS)
    elements = tuple(make_run(folder / "runs" / "folds" / f"fold-{fold}", steps=STEPS).path for fold in range(2))
    submit(request_of(chain.path))
    array = submit(request_of(folder / "runs" / "folds", elements=elements, requeue="self"))
    held = tuple(make_run(folder / "held" / f"fold-{fold}", steps=STEPS).path for fold in range(2))
    submit(request_of(folder / "held", elements=held, requeue="self", options=("--hold",)))
    for name in ("chain", "folds/fold-0", "folds/fold-1"):
        wait_for_phase(capsys, f"runs/{name}", "running")
    rows = status(capsys, "runs/folds")
    assert [row["job"] for row in rows] == [f"{array}_0", f"{array}_1"]

    first, second = (link.job for link in read_job_records(chain))
    assert cli.main(["cancel", "runs/chain", "runs/folds"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "cancelled" in line]
    assert [re.findall(r"\d+(?:_\d+)?", line)[-1] for line in lines] == [second, first, f"{array}_0", f"{array}_1"]
    assert [row["phase"] for row in status(capsys)] == ["cancelled"] * 3
    assert [row["over"] for row in status(capsys)] == [True] * 3
    assert len(read_job_records(chain)) == 2, "no further link was queued"
    assert cli.main(["cancel", "runs"]) == 0
    assert "cancelled job" not in capsys.readouterr().out, "no job is left"
    assert cli.main(["status"]) == 0
    assert "3 cancelled" in capsys.readouterr().out
    # Slurm keeps no record of an element that never started.
    assert status(capsys, "held")[0]["job_reason"] == "JobHeldUser"
    assert cli.main(["cancel", "held"]) == 0
    assert [row["phase"] for row in status(capsys, "held")] == ["cancelled"] * 2


def test_job_without_ranks_shows_its_error(
    cluster_env: Cluster, request_of: Callable[..., JobRequest], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(folder / "runs" / "one", steps=STEPS)
    request = request_of(run.path, requeue="none")
    (folder / "python").write_text("#!/bin/sh\necho 'hsadml: no module named torch' >&2; exit 1\n")
    job = submit(request)
    row = wait_for_phase(capsys, "runs/one", "failed")
    assert f"job {job} " in row["reason"] and "FAILED (NonZeroExitCode)" in row["reason"]
    assert f"slurm-{job}.out" in row["reason"]
    assert cli.main(["logs", "runs/one"]) == 0
