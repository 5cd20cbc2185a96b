import socket

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.launch.doctor.disk_checks import RACES
from hsadml_dist.launch.doctor.probe_job import CollectiveTiming, GroupReport
from hsadml_dist.launch.doctor.probe_network import (
    CLOCK_SAMPLES,
    SIZES,
    interface_with_address,
    measure_group,
    source_address,
)
from hsadml_dist.launch.doctor.rank_checks import clock_offsets


def test_loopback_interface_is_found_by_its_address():
    assert interface_with_address("127.0.0.1") in {name for _, name in socket.if_nameindex()}
    assert source_address("127.0.0.1") == "127.0.0.1"


def test_unknown_host_has_no_address_and_unknown_address_no_interface():
    assert source_address("no-such-host.invalid") == ""
    assert interface_with_address("203.0.113.1") == ""
    assert interface_with_address("") == ""


def test_measure_group_with_two_ranks(ranks, tmp_path):
    written = ranks("launch/doctor/probe_network_ranks.py", 2, folder=tmp_path)
    reports = {
        rank: GroupReport(**one | {"timings": tuple(CollectiveTiming(**t) for t in one["timings"])})
        for rank, one in enumerate(written)
    }
    for one in reports.values():
        assert (one.seen, one.address, len(one.stamps)) == (2, "127.0.0.1", CLOCK_SAMPLES)
        assert [(t.operation, t.size) for t in one.timings] == [
            (name, size) for size in SIZES for name in ("all_reduce", "all_gather")
        ]
        assert all(t.backend == "gloo" and t.seconds > 0 for t in one.timings)
    assert [sum(wins) for wins in zip(reports[0].won, reports[1].won, strict=True)] == [1] * RACES
    assert reports[0].write_rate > 0 and reports[1].write_rate is None
    offsets = clock_offsets(reports)
    assert offsets[0] == 0.0 and offsets[1] > 1.0, "the clock of rank 1 is two seconds ahead"


def test_measure_group_with_one_rank_needs_no_process_group(tmp_path):
    report = measure_group(tmp_path, Topology())
    assert report.seen == 1 and all(report.won)
