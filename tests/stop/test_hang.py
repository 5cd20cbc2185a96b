import pytest

from hsadml_dist.run.signs import STAGES, PeerStatus, RankHeartbeat
from hsadml_dist.stop.hang import SILENT_SECONDS, choose_reporter, describe_peer, find_hanging_ranks


def seen(rank, step=7, stage="step", *, waits=True, silent=0.2, sign=True):
    found = (
        RankHeartbeat(rank=rank, step=step, stage=stage, waits=waits, doing="m, line 1, f", time=1.0) if sign else None
    )
    return PeerStatus(rank=rank, sign=found, silent=silent)


def named(*ranks):
    return [one.rank for one in find_hanging_ranks(ranks)]


def test_a_silent_rank_is_named_whatever_the_others_do():
    assert named(seen(0), seen(1, silent=30), seen(2, waits=False)) == [1]
    assert named(seen(0), seen(1, silent=SILENT_SECONDS)) == [0, 1]


def test_a_rank_without_any_sign_is_named():
    assert named(seen(0, waits=False), seen(1, sign=False)) == [1]


def test_of_ranks_at_the_same_place_the_ones_that_do_not_wait():
    assert named(seen(0), seen(1, waits=False), seen(2)) == [1]
    assert named(seen(0), seen(1, waits=False), seen(2, waits=False)) == [1, 2]


def test_a_rank_in_an_earlier_stage_is_behind():
    assert named(seen(0, stage="vote"), seen(1, stage="data", waits=False)) == [1]
    assert named(seen(0, stage="vote", waits=False), seen(1, stage="data", waits=False)) == [1]


@pytest.mark.parametrize("early", range(len(STAGES) - 1))
def test_the_order_of_the_stages_is_that_of_a_step(early):
    first, later = STAGES[early], STAGES[early + 1]
    assert named(seen(0, stage=later), seen(1, stage=first)) == [1]
    assert named(seen(0, step=8, stage=first), seen(1, step=7, stage=later)) == [1]


def test_ranks_that_all_wait_at_one_place_are_all_named():
    assert named(seen(0), seen(1), seen(2)) == [0, 1, 2]


def test_one_rank_alone_is_named():
    assert named(seen(0, waits=False)) == [0]
    assert named(seen(0, sign=False)) == [0]


def test_the_first_rank_that_gives_signs_reports():
    assert choose_reporter([seen(0), seen(1, silent=30)]) == 0
    assert choose_reporter([seen(0, silent=30), seen(1), seen(2)]) == 1
    assert choose_reporter([seen(0, sign=False), seen(1, silent=30), seen(2)]) == 2
    assert choose_reporter([seen(0, sign=False)]) == 0


def test_words():
    assert describe_peer(seen(1, sign=False)) == "rank 1 has given no sign of life"
    assert (
        describe_peer(seen(1, silent=11.7))
        == "rank 1 has given no sign of life for 12 s; its last was in stage step of step 7"
    )
    assert describe_peer(seen(1, stage="data", waits=False)) == "rank 1 is busy in stage data of step 7 (m, line 1, f)"
    assert describe_peer(seen(0)) == "rank 0 waits for its peers in stage step of step 7 (m, line 1, f)"
