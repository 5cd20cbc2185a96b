"""Which environment variables of Slurm, torchrun, MPI and containers pass from one process to the next.

A shell on a cluster often carries what belongs to another job: it is part of an allocation, or runs in a terminal that
was opened in one that has ended. Such variables beat the options of a batch script, hide jobs from queries, and tell
ranks that they are others.

| passed to | removed |
|---|---|
| Slurm's commands, and by ``sbatch`` to the job | :data:`SLURM_PREFIXES` except :data:`SLURM_KEPT`; the launchers' |
| local ranks | the launchers', and the job's if it has ended |
| a rank, when it starts | those of MPI, from which DeepSpeed would take the ranks |

The launchers' are :data:`TORCHRUN`, :data:`TORCHRUN_PREFIXES` and :data:`MPI_PREFIXES`. ``train.sbatch`` does the same
before it submits its successor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping

SLURM_PREFIXES = ("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCONTROL_", "SINFO_", "SCANCEL_")
SLURM_KEPT = ("SLURM_CONF", "SLURM_JWT")
"""How to reach the cluster."""
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN_PREFIXES = ("TORCHELASTIC_", "ROLE_", "GROUP_WORLD_")
MPI_PREFIXES = ("OMPI_", "PMI_", "PMIX_", "PMI2_", "MV2_", "MPI_LOCAL", "I_MPI_HYDRA")
JOB = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_RESTART_COUNT", "SLURM_JOB_END_TIME", "SLURM_STEP_ID", "SLURM_PROCID")
"""What makes a process part of a job."""
JOB_END = "SLURM_JOB_END_TIME"


def slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command of Slurm; by ``sbatch`` it is also that of the job."""
    own = {name: value for name, value in environ.items() if name in SLURM_KEPT or not name.startswith(SLURM_PREFIXES)}
    return _without_launchers(own)


def local_rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of ranks that are started on this machine.

    In an allocation they belong to its job, which they leave in time; not if that has ended, as in a terminal that has
    outlived it.
    """
    own = _without_launchers(environ)
    end = own.get(JOB_END, "")
    if not end.isdecimal() or int(end) < time.time():
        for name in JOB:
            own.pop(name, None)
    return own


def remove_mpi_variables(environ: MutableMapping[str, str]) -> None:
    """Remove the variables of MPI from a rank's own environment."""
    for name in [name for name in environ if name.startswith(MPI_PREFIXES)]:
        del environ[name]


def _without_launchers(environ: Mapping[str, str]) -> dict[str, str]:
    prefixes = TORCHRUN_PREFIXES + MPI_PREFIXES
    return {name: value for name, value in environ.items() if name not in TORCHRUN and not name.startswith(prefixes)}
