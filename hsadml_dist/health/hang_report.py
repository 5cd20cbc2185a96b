"""Report which ranks hang, and turn the error of a collective after a lost peer into one clear line."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence

import torch.distributed as dist

from hsadml_dist.errors import PeerLostError, RunLockedError
from hsadml_dist.health.heartbeat import STAGES, PeerStatus
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

log = logging.getLogger(__name__)

SILENT_SECONDS = 2.5
"""Heartbeats come every second; a rank without one for longer is suspended, or cannot run, or its machine is down."""

# Messages of gloo about a peer that died or does not answer. Gloo's errors have no class of their own, and some lack
# the name of its source file.
LOST = re.compile(
    r"connection (?:was likely )?(?:closed|reset|refused)|broken pipe|socket closed|timed? ?out|timeout"
    r"|no route to host|network is unreachable|connectFullMesh|pair closure",
    re.IGNORECASE,
)
GLOO = re.compile(r"gloo|by peer|remote", re.IGNORECASE)


def find_hanging_ranks(ranks: Sequence[PeerStatus]) -> list[PeerStatus]:
    """Return the ranks that the others wait for.

    These are the silent ranks; without any, the ranks that do not wait for peers while others do; without any, those
    furthest behind. Ranks that are all at the same position are all returned.
    """
    silent = [peer for peer in ranks if _is_silent(peer)]
    if silent:
        return silent
    positions = {
        peer.rank: (peer.heartbeat.step, STAGES.index(peer.heartbeat.stage)) for peer in ranks if peer.heartbeat
    }
    busy = [peer for peer in ranks if peer.heartbeat and not peer.heartbeat.waits]
    candidates = busy or list(ranks)
    last = min(positions[peer.rank] for peer in candidates)
    return [peer for peer in candidates if positions[peer.rank] == last]


def choose_reporter(ranks: Sequence[PeerStatus]) -> int:
    """Return the rank that records the hang on behalf of all: the first with a current heartbeat."""
    return min((peer.rank for peer in ranks if not _is_silent(peer)), default=0)


def describe_peer(peer: PeerStatus) -> str:
    """Return the state of a rank as text."""
    heartbeat = peer.heartbeat
    if heartbeat is None:
        return f"rank {peer.rank} has not sent any heartbeat"
    where = f"in stage {heartbeat.stage} of step {heartbeat.step}"
    if _is_silent(peer):
        return f"rank {peer.rank} has sent no heartbeat for {peer.age:.0f} s; it was last {where}"
    activity = "waits for its peers" if heartbeat.waits else "is busy"
    return f"rank {peer.rank} {activity} {where} ({heartbeat.doing})"


def _is_silent(peer: PeerStatus) -> bool:
    return peer.heartbeat is None or peer.age > SILENT_SECONDS


def lost_peer_reason(fault: BaseException) -> str | None:
    """Return how a collective reports that a peer is gone, or None if ``fault`` is of another kind."""
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
    position: Callable[[], str],
    wait_for_report: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Turn the error of a collective whose peer is gone into an error with one clear line.

    Args:
        attempt: This rank's attempt, or None before it has one.
        position: Returns where this rank is, as text.
        wait_for_report: Waits for the watchdog's report, which has more detail, if it is about to end this process.

    Raises:
        PeerLostError: A peer is gone.
        RunLockedError: A peer is gone, and a later attempt has started without this rank.
    """
    try:
        yield
    except RuntimeError as fault:
        reason = lost_peer_reason(fault)
        if reason is None:
            raise
        log.info("a collective failed: %s", " ".join(str(fault).split()))
        wait_for_report()
        if attempt is not None and is_superseded(run, attempt):
            later = run.attempts()[-1].number
            text = f"{run.path}: attempt {later} has started; attempt {attempt.number} stops writing"
            raise RunLockedError(text) from fault
        raise PeerLostError(f"another rank is gone or hangs, noticed {position()}: {reason}") from fault
