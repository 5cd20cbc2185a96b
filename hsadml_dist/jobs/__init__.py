"""Prepare runs: from a recipe to a run folder, and to a Slurm job."""
