"""From a recipe to a run folder and to a Slurm job."""
