"""One rank of the doctor's job: ``python -m hsadml_dist.launch.doctor.probe_rank FOLDER``."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hsadml_dist
from hsadml_dist.errors import ClusterError, UsageError
from hsadml_dist.launch.doctor.host_checks import host_limits, installed_versions
from hsadml_dist.launch.doctor.probe_job import GpuReport, RankReport, write_rank_report
from hsadml_dist.launch.doctor.slurm_checks import PROGRAMS
from hsadml_dist.launch.exit_codes import hard_exit, run_with_exit_code
from hsadml_dist.slurm import client

TRIVIAL_JOB = "#!/bin/sh\n#SBATCH --ntasks=1 --time=1 --output=/dev/null\ntrue\n"


def main(arguments: Sequence[str]) -> int:
    """Write this rank's report to the folder named by the only argument and return the exit code."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return run_with_exit_code(lambda: _probe(arguments), f"hsadml: on {socket.gethostname()}")


def _probe(arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        raise UsageError("usage: python -m hsadml_dist.launch.doctor.probe_rank FOLDER")
    from hsadml_dist.distributed.topology import topology_from_environ
    from hsadml_dist.launch.doctor.probe_network import measure_group

    folder, topology = Path(arguments[0]), topology_from_environ()
    report = local_report(topology.rank, first_of_node=topology.local_rank == 0)
    # Written before the ranks connect, so that a rank that hangs or dies there has reported this much.
    write_rank_report(folder, report)
    try:
        report = replace(report, together=measure_group(folder, topology))
    except (OSError, RuntimeError, ClusterError) as fault:
        report = replace(report, error=" ".join(str(fault).split()) or type(fault).__name__)
    write_rank_report(folder, report)


def local_report(rank: int, *, first_of_node: bool) -> RankReport:
    """Return what a rank finds out without its peers."""
    return RankReport(
        rank=rank,
        host=socket.gethostname(),
        versions=installed_versions(),
        package=str(Path(hsadml_dist.__file__).parent),
        machine=host_limits(),
        programs=tuple(name for name in PROGRAMS if shutil.which(name) is None),
        submit=_sbatch_refusal() if first_of_node else None,
        gpus=_visible_gpus(),
    )


def _sbatch_refusal() -> str:
    """Return why sbatch refuses a job from this node; empty if it accepts one."""
    try:
        client.sbatch_test(TRIVIAL_JOB)
    except ClusterError as fault:
        return str(fault)
    return ""


def _visible_gpus() -> GpuReport:
    import torch

    promised = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return GpuReport(promised=promised)
    names = tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return GpuReport(names=names, bf16=torch.cuda.is_bf16_supported(), promised=promised)


if __name__ == "__main__":
    hard_exit(main(sys.argv[1:]))
