"""Can this machine and its cluster carry a run? Questions that cost seconds, asked before a night is spent."""
