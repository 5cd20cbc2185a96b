"""Read what a process shows on a pseudo-terminal."""

import os


def read_terminal(descriptor: int) -> bytes:
    """Return what is shown until the other end of the terminal is closed; closes this one."""
    shown = b""
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(descriptor)
    return shown
