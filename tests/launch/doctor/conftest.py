import pytest

from hsadml_dist.launch.doctor.host_checks import GIBIBYTE, UNLIMITED, HostLimits
from hsadml_dist.launch.doctor.probe_job import CollectiveTiming, GpuReport, GroupReport, RankReport

LIMITS = HostLimits(
    umask=0o022, shared_total=8 * GIBIBYTE, shared_free=8 * GIBIBYTE, files=4096, locked=UNLIMITED, cpus=4
)
VERSIONS = {"python": "3.11.7", "hsadml-dist": "0.1.0", "torch": "2.13.0", "monai": "1.6.0", "webdataset": "1.0.2"}
TIMINGS = tuple(
    CollectiveTiming(backend="gloo", operation=name, size=size, seconds=seconds)
    for name in ("all_reduce", "all_gather")
    for size, seconds in ((4096, 0.0005), (2**24, 0.02))
)


@pytest.fixture
def reports():
    """Reports of four healthy ranks on two nodes."""

    def one(rank):
        first = rank % 2 == 0
        together = GroupReport(
            address=f"10.0.0.{rank // 2}",
            interface="ib0",
            stamps=(100.0, 101.0, 102.0),
            round_trip=0.001,
            timings=TIMINGS,
            seen=4,
            seen_seconds=0.1,
            won=tuple(race % 4 == rank for race in range(8)),
            write_rate=500.0 if first else None,
        )
        return RankReport(
            rank=rank,
            host=f"n{rank // 2 + 1}",
            versions=VERSIONS,
            package="/opt/hsadml_dist",
            machine=LIMITS,
            programs=(),
            submit="" if first else None,
            gpus=GpuReport(),
            together=together,
        )

    return {rank: one(rank) for rank in range(4)}
