import pytest

from hsadml_dist.comm import SoloComm
from hsadml_dist.stop.agreement import Decision, StopAgreement
from hsadml_dist.stop.signals import Notice


@pytest.mark.parametrize("world", [1, 3])
def test_all_ranks_stop_before_the_same_step_though_one_was_told(ranks, world):
    answers = ranks("stop/agreement_ranks.py", world, "signal")
    assert len({answer["step"] for answer in answers}) == 1
    assert answers[0]["step"] > 1
    assert [answer["noticed"] for answer in answers] == [None] * (world - 1) + ["SIGUSR2"]


def test_a_rank_without_a_batch_stops_all(ranks):
    answers = ranks("stop/agreement_ranks.py", 3, "no batch")
    assert [answer["step"] for answer in answers] == [7, 7, 7]
    assert [answer["noticed"] for answer in answers] == [None] * 3


class Voting(SoloComm):
    """The other ranks' largest vote is given."""

    def __init__(self, others):
        super().__init__()
        self.others = others

    def vote(self, value):
        return max(value, self.others)


@pytest.mark.parametrize(
    ("told", "has_batch", "others", "decision"),
    [
        (False, True, Decision.GO, Decision.GO),
        (True, True, Decision.GO, Decision.STOP),
        (False, False, Decision.GO, Decision.STOP),
        (False, True, Decision.STOP, Decision.STOP),
        (True, False, Decision.STOP, Decision.STOP),
    ],
)
def test_the_largest_wish_wins(told, has_batch, others, decision):
    notice = Notice()
    if told:
        notice.deliver("test")
    assert StopAgreement(Voting(others), notice).decide(has_batch=has_batch) is decision
