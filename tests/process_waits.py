"""Wait for processes that a test did not start itself."""

import os
import select


def wait_until_ended(pid):
    """Wait on the process's own descriptor, however long the machine takes; return whether it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 60)[0])
    finally:
        os.close(descriptor)
