"""Checkpoints: written atomically, verified before they are loaded, independent of the number of ranks."""
