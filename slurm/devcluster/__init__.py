"""A private Slurm cluster on one machine: real daemons, real preemption, one folder, no root daemon touched."""
