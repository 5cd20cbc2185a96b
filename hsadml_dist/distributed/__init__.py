"""Ranks: their places in a job, the process groups, and how they find each other."""
