"""``hsadml cluster``: start and stop a private Slurm cluster on this machine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from hsadml_dist.errors import ClusterError, ExitCode, UsageError
from hsadml_dist.launch.cli.terminal import AsJson, echo, echo_json
from hsadml_dist.slurm.devcluster import cluster as devcluster

app = App(name="cluster", help="Start and stop a private Slurm cluster on this machine, to try out jobs.")


@app.command
def up(
    folder: Path,
    /,
    *,
    nodes: int = 2,
    mode: Literal["local", "netns"] = "local",
    site: Literal["friendly", "default", "strict", "requeueing"] = "friendly",
) -> None:
    """Start a cluster, and return when its nodes are idle.

    All files are in one folder. Jobs in the partition high preempt those in low, the default partition.

    Args:
        folder: The cluster's folder, which will contain slurm.conf.
        nodes: Number of compute nodes, n1 to nN, with 8 CPUs and 4 simulated GPUs each.
        mode: local: nodes share this machine's name and address. netns: each node has its own network (needs root).
        site: Settings of the simulated site. friendly: jobs are signalled before preemption and restart within seconds.
            default: Slurm's defaults, with no signal before preemption and a restart after 2 minutes. strict: like
            default, with few jobs per user and no sbatch on nodes. requeueing: jobs that fail or stop are requeued by
            their exit code.
    """
    started = devcluster.up(folder, nodes=nodes, mode=mode, site=site)
    echo(f"cluster of {nodes} nodes is up: export SLURM_CONF={started.conf_file}")


@app.command
def down(folder: Path, /) -> None:
    """Stop a cluster: its jobs, daemons and network devices.

    Args:
        folder: The cluster's folder, which is kept with the logs.
    """
    try:
        devcluster.load(folder).down()
    except ClusterError:
        echo(f"no cluster is running in {folder}")
        return
    echo(f"cluster is down: {folder}")


@app.command
def status(folder: Path, /, *, as_json: AsJson = False) -> int:
    """Show the daemons and the state of the nodes. Exit code 1 if a daemon or a node is not ready.

    Args:
        folder: The cluster's folder.
        as_json: Print JSON instead of lines.
    """
    found = devcluster.load(folder).status()
    if as_json:
        echo_json({**dataclasses.asdict(found), "ready": found.ready})
    else:
        for name, alive in found.daemons.items():
            echo(f"{name:12} {'runs' if alive else 'stopped':8} {found.nodes.get(name, '')}".rstrip())
    return ExitCode.SUCCESS if found.ready else ExitCode.USER_ERROR


@app.command(name="exec")
def exec_(folder: Path, /, *command: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a command with the cluster's SLURM_CONF and return its exit code.

    Args:
        folder: The cluster's folder.
        command: The command and its arguments, for instance squeue.
    """
    if not command:
        raise UsageError("no command to run; for instance: hsadml cluster exec DIR squeue")
    env = devcluster.load(folder).env()
    try:
        # As in a shell, Ctrl-C is handled by the command.
        done = subprocess.run(command, env=env, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]!r}: {os.strerror(error.errno or 0)}") from None
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
