"""Which process a number stands for: a process id alone may be taken by a later process."""

from __future__ import annotations

from pathlib import Path

START_TIME = 19
"""Place of the start time among the fields after the name."""


def read_proc_stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` after the name, from the state on; None for a process that is gone."""
    # The name, the second field, may hold blanks and brackets: the rest starts after the last bracket.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def process_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None for one that is gone or a zombie."""
    fields = read_proc_stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return int(fields[START_TIME])
