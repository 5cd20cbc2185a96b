"""Report which ranks hang, and turn the error of a collective after a lost peer into one clear line."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence

import torch.distributed as dist

from hsadml_dist.errors import PeerLostError, RunLockedError
from hsadml_dist.health.heartbeat import STAGES, PeerStatus, RankHeartbeat
from hsadml_dist.run.attempts import is_superseded
from hsadml_dist.run.folder import AttemptFolder, RunFolder

SILENT_SECONDS = 2.5
"""Signs come each second; a rank silent for longer is stopped, or cannot run, or its machine is gone."""


def find_hanging_ranks(ranks: Sequence[PeerStatus]) -> list[PeerStatus]:
    """Return the ranks that hold the others up.

    Silent ones; else those that do not wait for others while others do; else those furthest behind. Where all are at
    the same place, all.
    """
    silent = [one for one in ranks if one.sign is None or one.silent > SILENT_SECONDS]
    if silent:
        return silent
    busy = [one for one in ranks if one.sign is not None and not one.sign.waits]
    candidates = busy or list(ranks)
    last = min(_position(one.sign) for one in candidates if one.sign is not None)
    return [one for one in candidates if one.sign is not None and _position(one.sign) == last]


def choose_reporter(ranks: Sequence[PeerStatus]) -> int:
    """Return the rank that records the hang for all: the first that still gives signs of life."""
    return min((one.rank for one in ranks if one.sign is not None and one.silent <= SILENT_SECONDS), default=0)


def describe_peer(one: PeerStatus) -> str:
    """Return what a rank does, in words."""
    if one.sign is None:
        return f"rank {one.rank} has given no sign of life"
    where = f"in stage {one.sign.stage} of step {one.sign.step}"
    if one.silent > SILENT_SECONDS:
        return f"rank {one.rank} has given no sign of life for {one.silent:.0f} s; its last was {where}"
    waits = " waits for its peers" if one.sign.waits else " is busy"
    return f"rank {one.rank}{waits} {where} ({one.sign.doing})"


def _position(sign: RankHeartbeat) -> tuple[int, int]:
    return sign.step, STAGES.index(sign.stage)


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
