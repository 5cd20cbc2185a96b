"""One clear line where a peer's death reaches this rank as the error of a collective."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

import torch.distributed as dist

from hsadml_dist.errors import PeerLostError, RunLockedError
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

log = logging.getLogger(__name__)

# What gloo says of a peer that died, and of one that is silent. Gloo's faults have no class of their own, and some
# come without the name of its source file.
LOST = re.compile(
    r"connection (?:was likely )?(?:closed|reset|refused)|broken pipe|socket closed|timed? ?out|timeout"
    r"|no route to host|network is unreachable|connectFullMesh|pair closure",
    re.IGNORECASE,
)
GLOO = re.compile(r"gloo|by peer|remote", re.IGNORECASE)


def lost_peer_reason(fault: BaseException) -> str | None:
    """Return in words how a collective says that a peer is gone; None: the fault is another one."""
    if not isinstance(fault, RuntimeError):
        return None
    found = LOST.search(str(fault))
    if isinstance(fault, dist.DistError):
        return found.group().lower() if found else "the process group failed"
    return found.group().lower() if found and GLOO.search(str(fault)) else None


@contextlib.contextmanager
def raise_on_lost_peer(
    run: RunFolder,
    attempt: AttemptFolder | None,
    when: Callable[[], str],
    wait_for_report: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Raise an error of one line where the ranks cannot go on together.

    Args:
        run: The run folder.
        attempt: This rank's attempt, if it has one already.
        when: Says where this rank is, in words.
        wait_for_report: Waits for the watchdog, whose report says more, if it is about to end this process.

    Raises:
        PeerLostError: A peer is gone.
        RunLockedError: The same, and a later attempt has started: this rank was left behind.
    """
    try:
        yield
    except RuntimeError as fault:
        how = lost_peer_reason(fault)
        if how is None:
            raise
        log.info("a collective failed: %s", " ".join(str(fault).split()))
        wait_for_report()
        if attempt is not None and is_superseded(run, attempt):
            later = run.attempts()[-1].number
            text = f"{run.path}: attempt {later} has started; attempt {attempt.number} writes nothing more"
            raise RunLockedError(text) from fault
        raise PeerLostError(f"another rank is gone or hangs, noticed {when()}: {how}") from fault
