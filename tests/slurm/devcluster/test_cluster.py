"""A private cluster, with real daemons: it comes up, does what its site does, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsadml_dist.errors import ClusterError, UsageError
from hsadml_dist.slurm.devcluster import cluster as box
from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.cluster import Cluster

GLOO = Path(__file__).with_name("gloo_ranks.py")
pytestmark = pytest.mark.slurm


def devices() -> set[str]:
    """Network devices of private clusters on this machine."""
    return {path.name for path in Path("/sys/class/net").glob("hs[bv]*")}


def queue(cluster: Cluster, *options: str) -> str:
    return cluster.run(["sbatch", "--parsable", *options]).stdout.strip()


def test_nodes_are_idle_and_run_a_step(cluster: Cluster) -> None:
    assert cluster.status().ready
    assert cluster.status().nodes == {"n1": "idle", "n2": "idle"}
    argv = ["srun", "-N2", "--ntasks-per-node=2", "sh", "-c", "echo $SLURM_PROCID $SLURMD_NODENAME $(hostname)"]
    rows = sorted(line.split() for line in cluster.run(argv).stdout.splitlines())
    assert [row[:2] for row in rows] == [["0", "n1"], ["1", "n1"], ["2", "n2"], ["3", "n2"]]
    if cluster.mode == "netns":
        assert all(name == host for _, name, host in rows)


def test_nothing_is_left_after_down(cluster: Cluster) -> None:
    before = devices()
    bridge = cluster.bridge
    # A step, a batch shell, and a process that has run away from both.
    script = cluster.folder / "job.sh"
    script.write_text(f"#!/bin/sh\nsetsid sleep 1234 &\nsrun sleep 1235 &\ntouch {cluster.folder}/started\nwait\n")
    queue(cluster, "-N2", "-o", "/dev/null", str(script))
    assert daemons.wait_until((cluster.folder / "started").exists, seconds=20)
    # srun itself ends in the same words, twice.
    assert daemons.wait_until(lambda: len(sleepers(cluster)) == 5, seconds=10), sleepers(cluster)
    pids = [*sleepers(cluster), *minders(cluster)]
    assert len(pids) >= 8
    cluster.down()
    assert not any(daemon.alive for daemon in cluster.daemons)
    assert daemons.wait_until(lambda: not any(daemons.process_start_time(pid) for pid in pids), seconds=5), (
        "jobs are left"
    )
    assert not (cluster.folder / box.RECORD).exists()
    if bridge is not None:
        assert any(name.startswith(bridge.name) for name in before)
        assert not any(name == bridge.name or name.startswith(bridge.cable(0)[:-1]) for name in devices())
    cluster.down()


def sleepers(cluster: Cluster) -> list[int]:
    """What the job started, and srun, whose command line ends in the same words."""
    ends = (b"sleep\x001234\x00", b"sleep\x001235\x00")
    own = str(cluster.folder).encode()
    return [pid for pid in daemons.parents() if _read(pid, "cmdline").endswith(ends) and own in _read(pid, "environ")]


def minders(cluster: Cluster) -> list[int]:
    """Slurm's own processes that look after the steps: they hold their node's log."""
    found = [pid for pid in daemons.parents() if _read(pid, "cmdline").startswith(b"slurmstepd")]
    return [pid for pid in found if os.readlink(f"/proc/{pid}/fd/3").startswith(str(cluster.folder))]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def test_clusters_stand_side_by_side(make_cluster: box.Cluster) -> None:
    pair = [make_cluster(mode=mode, nodes=1) for mode in ("local", "local")]
    if os.geteuid() == 0:
        pair += [make_cluster(mode="netns", nodes=1) for _ in range(2)]
    for cluster in pair:
        queue(cluster, "-H", "-o", "/dev/null", "--wrap", "true")
    for cluster in pair:
        assert cluster.run(["squeue", "-h", "-o", "%A"]).stdout.split() == ["1"]


def test_a_second_up_is_refused_and_one_after_down_goes_on(folder: Path) -> None:
    with box.up(folder / "box", nodes=1) as first:
        with pytest.raises(ClusterError, match=r"runs in .* already; stop it first: hsadml cluster down"):
            box.up(folder / "box", nodes=1)
        assert queue(first, "-H", "-o", "/dev/null", "--wrap", "true") == "1"
        assert box.load(folder / "box") == first
    with pytest.raises(ClusterError, match="no private cluster runs in"):
        box.load(folder / "box")
    with box.up(folder / "box", nodes=2) as second:
        assert second.run(["squeue", "-h"]).stdout == "", "a job of the earlier cluster came back"
        assert queue(second, "-H", "-o", "/dev/null", "--wrap", "true") == "2", "two jobs have the same number"


def test_a_cluster_outlives_its_starter_and_is_stopped_by_another(folder: Path) -> None:
    code = f"from pathlib import Path; from hsadml_dist.slurm.devcluster.cluster import up; up(Path({str(folder)!r}), nodes=1)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    cluster = box.load(folder)
    try:
        assert cluster.status().ready
        assert cluster.run(["srun", "echo", "hello"]).stdout == "hello\n"
    finally:
        cluster.down()
    assert not any(daemon.alive for daemon in cluster.daemons)


def test_a_long_path_is_no_obstacle(folder: Path) -> None:
    deep = folder / ("long-" * 20) / ("way " * 10).strip() / "down"
    with box.up(deep, nodes=1) as cluster:
        assert cluster.run(["srun", "echo", "hello"]).stdout == "hello\n"
        assert cluster.root != cluster.folder
    assert not cluster.root.parent.exists()


def test_a_daemon_that_fails_is_named_and_nothing_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Cluster] = []
    start = box._start
    monkeypatch.setattr(box.conf, "slurm_conf", lambda layout: "ClusterName=broken\n")
    monkeypatch.setattr(box, "_start", lambda cluster, layout: seen.append(start(cluster, layout)) or seen[-1])
    with pytest.raises(ClusterError, match="slurmctld ended while the cluster came up: "):
        box.up(folder / "box", nodes=1)
    assert seen
    assert not any(daemon.alive for daemon in seen[0].daemons)
    assert not (folder / "box" / box.RECORD).exists()


@pytest.mark.parametrize("wanted", [{"nodes": 0}, {"nodes": 65}, {"mode": "cloud"}, {"site": "kind"}])
def test_wrong_wishes_are_refused_before_anything_starts(folder: Path, wanted: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="allowed: "):
        box.up(folder / "box", **wanted)
    assert not (folder / "box").exists()


def test_gpus_are_handed_out(local_cluster: Cluster) -> None:
    argv = ["srun", "-N2", "--ntasks-per-node=2", "--gpus-per-task=1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert len(local_cluster.run(argv).stdout.split()) == 4


def test_power_and_cable(make_cluster: box.Cluster) -> None:
    cluster = make_cluster(mode="netns")
    ping = ["srun", "-N1", "-w", "n1", "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/n2/6818"]
    cluster.run(ping)
    cluster.cut_cable("n2")
    assert cluster.run(ping, check=False).returncode != 0
    cluster.mend_cable("n2")
    assert daemons.wait_until(lambda: cluster.run(ping, check=False).returncode == 0, seconds=20, pause=0.5)
    cluster.cut_power("n2")
    assert not cluster.daemon("n2").alive
    assert cluster.run(ping, check=False).returncode != 0
    assert cluster.run(["srun", "-N1", "-w", "n1", "hostname"]).stdout == "n1\n"


def test_local_nodes_have_no_power_plug(local_cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="only nodes of mode netns"):
        local_cluster.cut_power("n1")


def hold_later(cluster: box.Cluster) -> str:
    """Queue a held job in a later second than the last change: a second one within its second goes unseen."""
    time.sleep(1.1)
    return queue(cluster, "-H", "-o", "/dev/null", "--wrap", "true")


@pytest.mark.parametrize("mode", ["local", "netns"])
def test_a_strict_site_limits_jobs_and_takes_none_from_nodes(make_cluster: box.Cluster, mode: str) -> None:
    cluster = make_cluster(mode=mode, site="strict")
    out = cluster.folder / "out"
    script = cluster.folder / "job.sh"
    script.write_text("#!/bin/sh\nsbatch -o /dev/null --wrap true 2>&1\necho rc $?\n")
    queue(cluster, "-o", str(out), str(script))
    assert daemons.wait_until(lambda: out.exists() and "rc" in out.read_text(), seconds=20)
    refusal = "not found" if mode == "netns" else "jobs may not be submitted from compute nodes here"
    assert "rc 0" not in out.read_text()
    assert refusal in out.read_text() or "ermission denied" in out.read_text()
    held = [hold_later(cluster) for _ in range(2)]
    with pytest.raises(ClusterError, match=r"[Pp]olicy"):
        hold_later(cluster)
    time.sleep(1.1)
    cluster.run(["scancel", held[0]])
    hold_later(cluster)


def test_ranks_find_each_other(cluster: Cluster) -> None:
    argv = ["srun", "-N2", "--ntasks-per-node=2", sys.executable, str(GLOO), str(cluster.folder / "rendezvous")]
    rows = sorted(cluster.run(argv, timeout=120).stdout.split())
    assert rows == ["0:6.0", "1:6.0", "2:6.0", "3:6.0"]
