"""Preemption: stop signals of single processes, requests in the run folder, and one decision of all ranks."""
