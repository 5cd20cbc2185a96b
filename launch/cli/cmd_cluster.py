"""``hsadml cluster``: a private Slurm cluster on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from hsadml_dist.errors import ClusterError, ExitCode, UsageError
from hsadml_dist.slurm.devcluster import cluster as box

app = App(name="cluster", help="A private Slurm cluster on this machine, for trying out.")


@app.command
def up(
    folder: Path,
    /,
    *,
    nodes: int = 2,
    mode: Literal["local", "netns"] = "local",
    site: Literal["friendly", "default", "strict", "requeueing"] = "friendly",
) -> None:
    """Start a cluster, and return once its nodes are idle.

    Everything is written under one folder. Jobs in the partition high preempt those in low, which is the default.

    Args:
        folder: The cluster's folder; it gets slurm.conf.
        nodes: Number of compute nodes, n1 to nN, of 8 CPUs and 4 make-believe GPUs each.
        mode: local: nodes share this machine's name and address. netns: each is a host of its own (needs root).
        site: friendly: a notice before preemption, back within seconds. default: Slurm's own settings, no notice, back
            after 2 minutes. strict: as default, and few jobs per user, none from compute nodes. requeueing: jobs that
            fail or stop come back by their exit code.
    """
    started = box.up(folder, nodes=nodes, mode=mode, site=site)
    print(f"cluster of {nodes} nodes is up: export SLURM_CONF={started.conf_file}")


@app.command
def down(folder: Path, /) -> None:
    """Stop a cluster: its jobs, its daemons, its network devices.

    Args:
        folder: The cluster's folder; it stays, with the logs.
    """
    try:
        box.load(folder).down()
    except ClusterError:
        print(f"no cluster runs in {folder}")
        return
    print(f"cluster is down: {folder}")


@app.command
def status(folder: Path, /, *, json_: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Show which daemons run and what state the nodes are in; exit code 1 unless all is well.

    Args:
        folder: The cluster's folder.
        json_: For programs.
    """
    found = box.load(folder).status()
    if json_:
        print(json.dumps({**dataclasses.asdict(found), "ready": found.ready}))
    else:
        for name, alive in found.daemons.items():
            print(f"{name:12} {'runs' if alive else 'is gone':8} {found.nodes.get(name, '')}".rstrip())
    return ExitCode.SUCCESS if found.ready else ExitCode.USER_ERROR


@app.command(name="exec")
def exec_(folder: Path, /, *command: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a command against a cluster, that is with its SLURM_CONF; its exit code is handed on.

    Args:
        folder: The cluster's folder.
        command: The command and its arguments, for instance squeue.
    """
    if not command:
        raise UsageError("no command to run; for instance: hsadml cluster exec DIR squeue")
    env = box.load(folder).env()
    try:
        # As in a shell: an interrupt is the command's affair.
        done = subprocess.run(command, env=env, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]!r}: {os.strerror(error.errno or 0)}") from None
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
