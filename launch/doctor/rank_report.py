"""What a rank of the doctor's job has found out, as a file that the login node reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsadml_dist.launch.doctor.host_checks import HostLimits
from hsadml_dist.run.folder import replace_text

PATTERN = "rank-*.json"


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """What torch sees of a rank's GPUs.

    Attributes:
        names: A name for each; empty: none.
        bf16: Whether all of them compute in bfloat16.
        promised: What Slurm gave the rank (CUDA_VISIBLE_DEVICES); None: it gave none.
    """

    names: tuple[str, ...] = ()
    bf16: bool = False
    promised: str | None = None


@dataclass(frozen=True, kw_only=True)
class CollectiveTiming:
    """How long a collective takes.

    Attributes:
        backend: ``gloo`` or ``nccl``.
        operation: ``all_reduce`` or ``all_gather``.
        size: Bytes that a rank has at its end.
        seconds: Median over some calls.
    """

    backend: str
    operation: str
    size: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """What ranks find out only together.

    Attributes:
        address: This rank's address as its peers see it.
        interface: The network interface that has it; empty: not known.
        stamps: This rank's clock, in seconds since 1970 UTC, each right after a vote of all ranks.
        round_trip: Shortest time that a vote took, in seconds.
        timings: How long collectives took.
        seen: Of how many ranks the file in the run's folder was seen here.
        seen_seconds: How long it took until they were.
        won: Which races to make a folder this rank has won.
        write_rate: Megabytes a second, all nodes writing at the same time; None: another rank of the node wrote.
    """

    address: str
    interface: str
    stamps: tuple[float, ...]
    round_trip: float
    timings: tuple[CollectiveTiming, ...]
    seen: int
    seen_seconds: float
    won: tuple[bool, ...]
    write_rate: float | None


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """All that a rank found.

    Attributes:
        rank: Its number.
        host: Its node's name.
        versions: Of Python and the packages, None where one is not installed.
        package: Folder that this package was imported from.
        machine: What the process is given.
        programs: Slurm's programs that are not on its PATH.
        submit: Why sbatch would refuse a job from here; empty: it would not; None: another rank of the node asked.
        gpus: Its GPUs.
        together: What the ranks found together; None: they did not meet.
        error: Why not.
    """

    rank: int
    host: str
    versions: Mapping[str, str | None]
    package: str
    machine: HostLimits
    programs: tuple[str, ...]
    submit: str | None
    gpus: GpuReport
    together: GroupReport | None = None
    error: str = ""


def write_rank_report(folder: Path, answer: RankReport) -> None:
    """Put an answer where the login node looks for it."""
    replace_text(folder / f"rank-{answer.rank:04d}.json", json.dumps(asdict(answer), indent=1))


def read_rank_reports(folder: Path) -> dict[int, RankReport]:
    """Return the answers that are there, by rank."""
    return {answer.rank: answer for answer in _read(folder)}


def _read(folder: Path) -> Iterator[RankReport]:
    for path in sorted(folder.glob(PATTERN)):
        raw: dict[str, Any] = _with_tuples(json.loads(path.read_text(encoding="utf-8")))
        raw["machine"], raw["gpus"] = HostLimits(**raw["machine"]), GpuReport(**raw["gpus"])
        raw["together"] = None if raw["together"] is None else _together(raw["together"])
        yield RankReport(**raw)


def _together(raw: dict[str, Any]) -> GroupReport:
    return GroupReport(**raw | {"timings": tuple(CollectiveTiming(**one) for one in raw["timings"])})


def _with_tuples(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _with_tuples(value) for key, value in raw.items()}
    return tuple(map(_with_tuples, raw)) if isinstance(raw, list) else raw
