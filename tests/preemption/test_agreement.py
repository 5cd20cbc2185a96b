import pytest

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.requests import StepDecision
from hsadml_dist.preemption.signals import StopSignal


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_all_ranks_stop_before_the_same_step_though_one_was_told(ranks, world):
    answers = ranks("preemption/agreement_ranks.py", world, "signal")
    assert len({answer["step"] for answer in answers}) == 1
    assert answers[0]["step"] > 1
    assert [answer["told"] for answer in answers] == [None] * (world - 1) + ["SIGUSR2"]
    assert {answer["last"] for answer in answers} == {StepDecision.STOP}


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(("file", "decision"), [("STOP", StepDecision.STOP), ("SAVE", StepDecision.SAVE)])
def test_what_rank_0_reads_in_the_run_folder_is_what_all_do_at_the_same_step(ranks, world, file, decision):
    answers = ranks("preemption/agreement_ranks.py", world, file)
    assert {answer["last"] for answer in answers} == {decision}
    assert len({answer["step"] for answer in answers}) == 1
    assert answers[0]["step"] > 1
    told = "STOP file" if file == "STOP" else None
    assert [answer["told"] for answer in answers] == [told] + [None] * (world - 1)


def test_all_ranks_leave_when_a_later_attempt_has_started(ranks):
    answers = ranks("preemption/agreement_ranks.py", 2, "attempts/0002")
    assert ["later attempt" in answer["held"] for answer in answers] == [True, True]
    assert answers[0]["step"] == answers[1]["step"] > 1


def test_a_rank_without_a_batch_stops_all(ranks):
    answers = ranks("preemption/agreement_ranks.py", 3, "no batch")
    assert [answer["step"] for answer in answers] == [7, 7, 7]
    assert [answer["told"] for answer in answers] == [None] * 3


def test_every_rank_knows_the_seconds_that_each_gave(ranks):
    answers = ranks("preemption/agreement_ranks.py", 3, "no batch")
    assert [answer["seconds"] for answer in answers] == [(7.0, 7.1, 7.2)] * 3


class Voting(SoloComm):
    """The other ranks' largest wish is given."""

    def __init__(self, others):
        super().__init__()
        self.others = others

    def all_reduce_max(self, values):
        return [max(values[0], self.others), *values[1:]]


class Asking:
    """A run folder that asks for something at each look."""

    stop_reason = None

    def __init__(self, decision):
        self.decision = decision

    def wish(self, step):
        return self.decision


@pytest.mark.parametrize("asked", [None, StepDecision.CONTINUE, StepDecision.SAVE, StepDecision.STOP])
@pytest.mark.parametrize("others", [StepDecision.CONTINUE, StepDecision.SAVE, StepDecision.STOP])
@pytest.mark.parametrize("has_batch", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_the_largest_wish_wins(told, has_batch, others, asked):
    notice = StopSignal()
    if told:
        notice.trigger("test")
    own = StepDecision.STOP if told or not has_batch else StepDecision.CONTINUE
    expected = max(own, others, asked or StepDecision.CONTINUE)
    agreement = StopAgreement(Voting(others), notice, None if asked is None else Asking(asked))
    assert agreement.decide(1, has_batch=has_batch) is expected


def test_the_reason_of_a_signal_comes_before_that_of_a_file():
    notice = StopSignal()
    asking = Asking(StepDecision.STOP)
    asking.stop_reason = "STOP file"
    assert StopAgreement(SoloComm(), notice, asking).stop_reason == "STOP file"
    notice.trigger("SIGTERM")
    assert StopAgreement(SoloComm(), notice, asking).stop_reason == "SIGTERM"
    assert StopAgreement(SoloComm(), StopSignal()).stop_reason is None
