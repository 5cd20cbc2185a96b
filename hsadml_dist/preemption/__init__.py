"""Stopping together: notices to single processes, and the vote that makes them one decision."""
