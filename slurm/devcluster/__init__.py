"""A private Slurm cluster on one machine: real daemons and real preemption in one folder, without system services."""
