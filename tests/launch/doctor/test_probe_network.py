import socket

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.launch.doctor.disk_checks import RACES
from hsadml_dist.launch.doctor.probe_network import CALLS, SIZES, VOTES, interface_with_address, meet, source_address
from hsadml_dist.launch.doctor.rank_checks import check_clocks
from hsadml_dist.launch.doctor.rank_report import CollectiveTiming, GroupReport


def test_the_loopback_interface_is_known_by_its_address():
    assert interface_with_address("127.0.0.1") in {name for _, name in socket.if_nameindex()}
    assert source_address("127.0.0.1") == "127.0.0.1"


def test_what_is_nowhere_has_no_address_and_no_interface():
    assert source_address("no-such-host.invalid") == ""
    assert interface_with_address("203.0.113.1") == ""
    assert interface_with_address("") == ""


def test_ranks_find_out_together(ranks, tmp_path, answers):
    told = ranks("launch/doctor/probe_network_ranks.py", 2, folder=tmp_path)
    met = {
        rank: GroupReport(**one | {"timings": tuple(CollectiveTiming(**t) for t in one["timings"])})
        for rank, one in enumerate(told)
    }
    for one in met.values():
        assert (one.seen, one.address, len(one.stamps)) == (2, "127.0.0.1", VOTES)
        assert [(t.operation, t.size) for t in one.timings] == [
            (name, size) for size in SIZES for name in ("all_reduce", "all_gather")
        ]
        assert all(t.backend == "gloo" and t.seconds > 0 for t in one.timings)
    assert [sum(wins) for wins in zip(met[0].won, met[1].won, strict=True)] == [1] * RACES
    assert met[0].write_rate > 0 and met[1].write_rate is None
    clocks = check_clocks(met, answers)
    assert clocks.todo.startswith("rank 1 (n1) is ahead of rank 0") or clocks.verdict == "ok"
    apart = float(clocks.found.split()[1]) / 1e3
    assert 1.9 < apart < 2.1 + max(one.round_trip for one in met.values())


def test_a_lone_rank_needs_no_group(tmp_path):
    found = meet(tmp_path, Topology())
    assert found.seen == 1 and all(found.won)
    assert CALLS > 1
