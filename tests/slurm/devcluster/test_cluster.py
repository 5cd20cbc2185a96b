"""Private clusters with real daemons: start, sites, faults, and a stop without a trace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError, UsageError
from hsadml_dist.slurm.devcluster import daemons, slurm_conf
from hsadml_dist.slurm.devcluster.cluster import RECORD, Cluster, load, up
from hsadml_dist.slurm.devcluster.daemons import Daemon

GLOO = Path(__file__).with_name("gloo_ranks.py")
HANG_SECONDS = 180
MakeCluster = Callable[..., Cluster]
pytestmark = pytest.mark.slurm


def devices() -> set[str]:
    """Return the network devices of private clusters on this machine."""
    return {path.name for path in Path("/sys/class/net").glob("hs[bv]*")}


def queue(cluster: Cluster, *options: str) -> str:
    """Submit a job and return its id."""
    return cluster.run(["sbatch", "--parsable", *options]).stdout.strip()


def test_up_returns_idle_nodes_that_run_steps(cluster: Cluster) -> None:
    assert cluster.status().ready
    assert cluster.status().nodes == {"n1": "idle", "n2": "idle"}
    argv = ["srun", "-N2", "--ntasks-per-node=2", "sh", "-c", "echo $SLURM_PROCID $SLURMD_NODENAME $(hostname)"]
    rows = sorted(line.split() for line in cluster.run(argv).stdout.splitlines())
    assert [row[:2] for row in rows] == [["0", "n1"], ["1", "n1"], ["2", "n2"], ["3", "n2"]]
    if cluster.mode == "netns":
        assert all(name == host for _, name, host in rows)


def test_down_leaves_no_process_or_device(cluster: Cluster) -> None:
    before = devices()
    bridge = cluster.bridge
    # A step, a batch shell, and a process in its own session.
    script = cluster.folder / "job.sh"
    script.write_text(f"#!/bin/sh\nsetsid sleep 1234 &\nsrun sleep 1235 &\ntouch {cluster.folder}/started\nwait\n")
    queue(cluster, "-N2", "-o", "/dev/null", str(script))
    assert daemons.wait_until((cluster.folder / "started").exists, seconds=HANG_SECONDS)
    # The command lines of srun, twice, end in the same words.
    assert daemons.wait_until(lambda: len(sleepers(cluster)) == 5, seconds=HANG_SECONDS), sleepers(cluster)
    pids = [*sleepers(cluster), *slurmstepds(cluster)]
    assert len(pids) >= 8
    cluster.down()
    assert not any(daemon.alive for daemon in cluster.daemons)
    assert daemons.wait_until(lambda: not any(daemons.process_start_time(pid) for pid in pids), seconds=HANG_SECONDS), (
        "jobs still run"
    )
    assert not (cluster.folder / RECORD).exists()
    if bridge is not None:
        assert any(name.startswith(bridge.name) for name in before)
        assert not any(name == bridge.name or name.startswith(bridge.cable(0)[:-1]) for name in devices())
    cluster.down()


def sleepers(cluster: Cluster) -> list[int]:
    """Return the processes of the job, and of srun, whose command line ends in the same words."""
    ends = (b"sleep\x001234\x00", b"sleep\x001235\x00")
    own = str(cluster.folder).encode()
    return [pid for pid in daemons.parents() if _read(pid, "cmdline").endswith(ends) and own in _read(pid, "environ")]


def slurmstepds(cluster: Cluster) -> list[int]:
    """Return the slurmstepd processes of the cluster: they have the log of their node open."""
    found = [pid for pid in daemons.parents() if _read(pid, "cmdline").startswith(b"slurmstepd")]
    return [pid for pid in found if any(path.startswith(str(cluster.folder)) for path in _open_files(pid))]


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):  # the process ends
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # the file is closed
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def test_several_clusters_run_at_the_same_time(make_cluster: MakeCluster) -> None:
    pair = [make_cluster(mode=mode, nodes=1) for mode in ("local", "local")]
    if os.geteuid() == 0:
        pair += [make_cluster(mode="netns", nodes=1) for _ in range(2)]
    for cluster in pair:
        queue(cluster, "-H", "-o", "/dev/null", "--wrap", "true")
    for cluster in pair:
        assert cluster.run(["squeue", "-h", "-o", "%A"]).stdout.split() == ["1"]


def test_up_is_refused_while_a_cluster_runs_and_continues_after_down(folder: Path) -> None:
    with up(folder / "cluster", nodes=1) as first:
        with pytest.raises(ClusterError, match="hsadml cluster down"):
            up(folder / "cluster", nodes=1)
        assert queue(first, "-H", "-o", "/dev/null", "--wrap", "true") == "1"
        assert load(folder / "cluster") == first
    with pytest.raises(ClusterError, match="hsadml cluster up"):
        load(folder / "cluster")
    with up(folder / "cluster", nodes=2) as second:
        assert second.run(["squeue", "-h"]).stdout == "", "a job of the earlier cluster was restored"
        assert queue(second, "-H", "-o", "/dev/null", "--wrap", "true") == "2", "two jobs have the same number"


def test_cluster_outlives_its_starter_and_is_stopped_by_another_process(folder: Path) -> None:
    imports = "import pathlib, sys; from hsadml_dist.slurm.devcluster.cluster import up"
    code = f"{imports}; up(pathlib.Path(sys.argv[1]), nodes=1)"
    subprocess.run([sys.executable, "-c", code, folder], check=True, timeout=HANG_SECONDS)
    cluster = load(folder)
    try:
        assert cluster.status().ready
        assert cluster.run(["srun", "echo", "hello"]).stdout == "hello\n"
    finally:
        cluster.down()
    assert not any(daemon.alive for daemon in cluster.daemons)


def test_up_in_a_folder_with_a_long_path(folder: Path) -> None:
    deep = folder / ("long-" * 20) / ("way " * 10).strip() / "down"
    with up(deep, nodes=1) as cluster:
        assert cluster.run(["srun", "echo", "hello"]).stdout == "hello\n"
        assert cluster.root != cluster.folder
    assert not cluster.root.parent.exists()


def test_failed_daemon_is_named_and_no_process_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Daemon] = []
    spawn = daemons.spawn
    monkeypatch.setattr(slurm_conf, "slurm_conf", lambda layout: "ClusterName=broken\n")
    monkeypatch.setattr(daemons, "spawn", lambda *args, **more: started.append(spawn(*args, **more)) or started[-1])
    with pytest.raises(ClusterError, match="slurmctld"):
        up(folder / "broken", nodes=1)
    assert [daemon.name for daemon in started] == ["munged", "slurmctld", "n1"]
    assert not any(daemon.alive for daemon in started)
    assert not (folder / "broken" / RECORD).exists()


@pytest.mark.parametrize("wanted", [{"nodes": 0}, {"nodes": 65}, {"mode": "cloud"}, {"site": "kind"}])
def test_up_refuses_invalid_arguments_before_anything_starts(folder: Path, wanted: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="allowed: "):
        up(folder / "cluster", **wanted)
    assert not (folder / "cluster").exists()


def test_jobs_get_gpus(local_cluster: Cluster) -> None:
    argv = ["srun", "-N2", "--ntasks-per-node=2", "--gpus-per-task=1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert len(local_cluster.run(argv).stdout.split()) == 4


def test_cut_power_and_cut_cable(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(mode="netns")
    ping = ["srun", "-N1", "-w", "n1", "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/n2/6818"]
    cluster.run(ping)
    cluster.cut_cable("n2")
    assert cluster.run(ping, check=False).returncode != 0
    cluster.mend_cable("n2")
    assert daemons.wait_until(lambda: cluster.run(ping, check=False).returncode == 0, seconds=HANG_SECONDS, pause=0.5)
    cluster.cut_power("n2")
    assert not cluster.daemon("n2").alive
    assert cluster.run(ping, check=False).returncode != 0
    assert cluster.run(["srun", "-N1", "-w", "n1", "hostname"]).stdout == "n1\n"


def test_cut_power_needs_mode_netns(local_cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="mode netns"):
        local_cluster.cut_power("n1")


def hold_later(cluster: Cluster) -> str:
    """Queue a held job in a later second than the last one, because the plug-in would miss one in the same second."""
    time.sleep(1.1)
    return queue(cluster, "-H", "-o", "/dev/null", "--wrap", "true")


@pytest.mark.parametrize("mode", ["local", "netns"])
def test_strict_site_limits_jobs_and_refuses_jobs_from_nodes(make_cluster: MakeCluster, mode: str) -> None:
    cluster = make_cluster(mode=mode, site="strict")
    out = cluster.folder / "out"
    script = cluster.folder / "job.sh"
    script.write_text("#!/bin/sh\nsbatch -o /dev/null --wrap true 2>&1\necho rc $?\n")
    queue(cluster, "-o", str(out), str(script))
    assert daemons.wait_until(lambda: out.exists() and "rc" in out.read_text(), seconds=HANG_SECONDS)
    refusal = "not found" if mode == "netns" else "jobs may not be submitted from compute nodes here"
    assert "rc 0" not in out.read_text()
    assert refusal in out.read_text() or "ermission denied" in out.read_text()
    held = [hold_later(cluster) for _ in range(2)]
    with pytest.raises(ClusterError, match=r"[Pp]olicy"):
        hold_later(cluster)
    time.sleep(1.1)
    cluster.run(["scancel", held[0]])
    hold_later(cluster)


def test_ranks_form_a_process_group(cluster: Cluster) -> None:
    argv = ["srun", "-N2", "--ntasks-per-node=2", sys.executable, str(GLOO), str(cluster.folder / "rendezvous")]
    rows = sorted(cluster.run(argv, timeout=HANG_SECONDS).stdout.split())
    assert rows == ["0:6.0", "1:6.0", "2:6.0", "3:6.0"]
