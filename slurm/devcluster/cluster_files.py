"""What a private cluster needs on disk and on the machine before its first daemon: files, devices, ports."""

from __future__ import annotations

import os
import random
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hsadml_dist.slurm.devcluster import slurm_conf as conf
from hsadml_dist.slurm.devcluster.slurm_conf import ClusterLayout

GPUS_PER_NODE = 4
# Below the ports that the kernel hands out for outgoing connections.
PORTS = range(20000, 32000)
# A Unix socket's path holds 107 bytes; a step's socket adds /spool/n12/n12_4294967295.4294967295 to the folder.
LONGEST_ROOT = 60


def short_path(folder: Path) -> Path:
    if len(os.fsencode(folder)) <= LONGEST_ROOT:
        return folder
    link = Path(tempfile.mkdtemp(prefix="hsadml-", dir="/tmp")) / "box"
    link.symlink_to(folder)
    return link


def free_ports(count: int, taken: Sequence[int] = ()) -> list[int]:
    """Return ``count`` different TCP ports that nothing on this machine listens on at the moment."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        if port not in taken and _bindable(port):
            found.append(port)
    return found


def _bindable(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def fake_gpus(root: Path) -> tuple[str, ...]:
    """Return device files that stand for GPUs: Slurm only asks that they are there."""
    folder = root / "dev"
    folder.mkdir(exist_ok=True)
    made = [folder / f"fakegpu{number}" for number in range(GPUS_PER_NODE)]
    try:
        for path in made:
            if not path.exists():
                os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        made = [Path(f"/dev/tty{number}") for number in range(GPUS_PER_NODE)]
    return tuple(str(path) for path in made if path.exists())


def write_files(layout: ClusterLayout) -> None:
    root = Path(layout.root)
    for name in ("munge", "state", "spool", "pid", "log", *(f"spool/{node.name}" for node in layout.nodes)):
        (root / name).mkdir(exist_ok=True, mode=0o755)
    texts = {
        "slurm.conf": conf.slurm_conf(layout),
        "gres.conf": conf.gres_conf(layout),
        "cgroup.conf": "",
        "plugstack.conf": "",
        "job_submit.lua": conf.job_submit_lua(layout.site),
        "hosts": conf.hosts_file(layout),
        "nsswitch.conf": conf.NSSWITCH,
        "resolv.conf": "",
        "absent": "",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    _write_key(root / "munge" / "key")


def _write_key(path: Path) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.urandom(128))
