from hsadml_dist.launch.doctor.answer import CollectiveTiming, GroupReport
from hsadml_dist.launch.doctor.collectives import CALLS, SIZES, VOTES
from hsadml_dist.launch.doctor.disk import RACES
from hsadml_dist.launch.doctor.judge import check_clocks
from hsadml_dist.launch.doctor.meeting import meet
from hsadml_dist.topology import Topology


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
