"""Whom to name when the ranks stand still: a pure reading of their signs of life."""

from __future__ import annotations

from collections.abc import Sequence

from hsadml_dist.run.signs import STAGES, PeerStatus, RankHeartbeat

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
