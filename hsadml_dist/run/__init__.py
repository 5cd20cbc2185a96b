"""The run folder: attempts, their event logs and metrics, and the run state derived from them."""
