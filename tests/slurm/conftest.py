"""Private Slurm clusters for tests. Without Slurm's daemons, tests marked ``slurm`` are skipped with the reason."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.slurm.devcluster.cluster import RECORD, Cluster, load, up
from hsadml_dist.slurm.devcluster.daemons import SYSTEM_PATHS
from hsadml_dist.slurm.sbatch import JobRequest
from hsadml_dist.slurm.submit import submit
from tests.slurm.cluster_trainings import hsadml

MakeCluster = Callable[..., Cluster]
FAKE_RANK = Path(__file__).with_name("fake_slurm_rank.py")
NEEDED = ("munged", "slurmctld", "slurmd", "srun")
SLURM_VARIABLES = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_")


def missing_programs() -> list[str]:
    """Return which of Slurm's programs this machine lacks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_PATHS])
    return [name for name in NEEDED if shutil.which(name, path=path) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_programs()
    reason = f"Slurm is not installed ({', '.join(missing)} missing): run slurm/devcluster/install.sh"
    for item in items:
        if missing and item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.skip(reason=reason))


def skip_without_namespaces(mode: str) -> None:
    """Skip the test if ``mode`` is ``netns`` and the user is not root."""
    if mode == "netns" and os.geteuid() != 0:
        pytest.skip("mode netns needs root")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide the caller's cluster, caches and profiles, so that tests depend on none of them."""
    for name in [name for name in os.environ if name.startswith(SLURM_VARIABLES)]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path so short that a cluster in it needs no link."""
    path = Path(tempfile.mkdtemp(prefix="hsadml-test-", dir="/tmp")).resolve()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_cluster(folder: Path) -> Iterator[MakeCluster]:
    """Start clusters that are stopped at the end of the test: ``make_cluster(mode=..., site=..., nodes=...)``."""
    made: list[Cluster] = []

    def make(*, mode: str = "local", site: str = "friendly", nodes: int = 2) -> Cluster:
        skip_without_namespaces(mode)
        made.append(up(folder / f"cluster{len(made)}", nodes=nodes, mode=mode, site=site))
        return made[-1]

    yield make
    for cluster in made:
        if (cluster.folder / RECORD).exists():
            load(cluster.folder).down()  # including daemons that the test has started


@pytest.fixture(params=["local", "netns"])
def cluster(request: pytest.FixtureRequest, make_cluster: MakeCluster) -> Cluster:
    """A friendly cluster of two nodes, in each mode."""
    return make_cluster(mode=request.param)


@pytest.fixture
def local_cluster(make_cluster: MakeCluster) -> Cluster:
    """A friendly cluster of two nodes on 127.0.0.1."""
    return make_cluster()


@pytest.fixture
def fake_python(folder: Path) -> Path:
    """A program in place of the interpreter that runs a fake rank, whatever its arguments are."""
    program = folder / "fake-python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE_RANK}" "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def request_of(folder: Path, fake_python: Path) -> Callable[..., JobRequest]:
    """Build a request whose ranks run for ``seconds`` and exit with ``code``."""

    def build(name: str = "run", *, seconds: float = 300, code: int = 0, **more: Any) -> JobRequest:
        run_dir = folder / name
        run_dir.mkdir()
        (run_dir / "plan").write_text(f"{seconds} {code}")
        plain = JobRequest(
            run_dir=run_dir,
            nodes=2,
            tasks_per_node=2,
            cpus_per_task=1,
            python=str(fake_python),
            working_dir=folder,
            job_name="try",
        )
        return dataclasses.replace(plain, **more)

    return build


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cluster, JobRequest], str]:
    """Submit like a user whose SLURM_CONF points at the cluster."""

    def put(cluster: Cluster, request: JobRequest) -> str:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf_file))
        return submit(request)

    return put


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 20 generated patients."""
    folder = tmp_path_factory.mktemp("data")
    out = folder / "shards"
    hsadml("shards", "build", "phantom", "20", "--out", out, "--size", "64", "--id-key", folder / "id.key")
    return out
