import time

import pytest

from hsadml_dist.launch_environment import local_rank_environment, remove_mpi_variables, slurm_environment

OWN = {"HOME": "/home/me", "PATH": "/bin", "SLURM_CONF": "/etc/s.conf", "GLOO_SOCKET_IFNAME": "ib0", "PYTHONPATH": "/x"}
LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "ROLE_RANK", "GROUP_WORLD_SIZE"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "MV2_COMM_WORLD_RANK"),
)
SLURM = (
    *(
        "SBATCH_PARTITION",
        "SBATCH_TIMELIMIT",
        "SBATCH_NO_REQUEUE",
        "SBATCH_SIGNAL",
        "SBATCH_OPEN_MODE",
        "SBATCH_EXPORT",
    ),
    *("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_MEM_PER_CPU", "SLURM_GPUS", "SLURM_NTASKS"),
    *(
        "SQUEUE_PARTITION",
        "SQUEUE_USERS",
        "SACCT_FORMAT",
        "SINFO_PARTITION",
        "SCANCEL_NAME",
        "SCONTROL_ALL",
        "SALLOC_QOS",
    ),
    *("SRUN_CPUS_PER_TASK", "SLURM_CLUSTERS", "SLURM_EXIT_ERROR"),
)


@pytest.mark.parametrize("name", [*LAUNCHERS, *SLURM])
def test_commands_of_slurm_get_no_variable_of_another_job(name):
    assert slurm_environment(OWN | {name: "hostile"}) == OWN


@pytest.mark.parametrize("name", LAUNCHERS)
def test_local_ranks_get_no_variable_of_another_launcher(name):
    assert local_rank_environment(OWN | {name: "9"}) == OWN


@pytest.mark.parametrize(("end", "is_kept"), [("past", False), ("", False), ("soon", False), ("future", True)])
def test_local_ranks_belong_to_the_job_around_them_until_it_ends(end, is_kept):
    text = {"past": str(int(time.time()) - 9), "future": str(int(time.time()) + 900)}.get(end, end)
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_END_TIME": text}
    assert local_rank_environment(OWN | job) == (OWN | job if is_kept else OWN)


def test_rank_drops_the_variables_of_mpi():
    environ = OWN | {"OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "1", "RANK": "0"}
    remove_mpi_variables(environ)
    assert environ == OWN | {"RANK": "0"}
