"""Ranks: their place in a job and their collective operations."""
