"""Start runs: the command line, local ranks, the doctor and the shipped recipes."""
