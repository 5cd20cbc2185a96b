"""Slurm: batch scripts, thin clients for Slurm's commands, submission, and the status of runs."""
