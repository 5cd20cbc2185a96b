"""Slurm: batch scripts as text, thin clients, submission, and a private cluster for trying all of it."""
