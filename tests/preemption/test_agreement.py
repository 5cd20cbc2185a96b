import pytest

from hsadml_dist.distributed.comm import FakeComm, SoloComm
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.requests import StepDecision
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.history import StopReason


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_signal_to_one_rank_stops_all_before_the_same_step(ranks, world):
    answers = ranks("preemption/agreement_ranks.py", world, "signal")
    assert len({answer["step"] for answer in answers}) == 1
    assert answers[0]["step"] > 1
    assert [answer["reason"] for answer in answers] == [None] * (world - 1) + [StopReason.SIGUSR2]
    assert {answer["last"] for answer in answers} == {StepDecision.STOP}


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(
    ("file", "decision", "reason"),
    [("STOP", StepDecision.STOP, StopReason.STOP_FILE), ("SAVE", StepDecision.SAVE, None)],
)
def test_request_file_reaches_all_ranks_before_the_same_step(ranks, world, file, decision, reason):
    answers = ranks("preemption/agreement_ranks.py", world, file)
    assert {answer["last"] for answer in answers} == {decision}
    assert len({answer["step"] for answer in answers}) == 1
    assert answers[0]["step"] > 1
    assert [answer["reason"] for answer in answers] == [reason] + [None] * (world - 1)


def test_later_attempt_locks_out_all_ranks_before_the_same_step(ranks):
    answers = ranks("preemption/agreement_ranks.py", 2, "attempts/0002")
    assert [answer["locked"] for answer in answers] == [True, True]
    assert answers[0]["step"] == answers[1]["step"] > 1


def test_rank_without_batch_stops_all_and_gives_no_reason(ranks):
    answers = ranks("preemption/agreement_ranks.py", 3, "no batch")
    assert [answer["step"] for answer in answers] == [7, 7, 7]
    assert [answer["reason"] for answer in answers] == [None] * 3


def test_compute_times_of_all_ranks_reach_every_rank(ranks):
    answers = ranks("preemption/agreement_ranks.py", 3, "no batch")
    assert [answer["seconds"] for answer in answers] == [(7.0, 7.1, 7.2)] * 3


class PeersProposing(FakeComm):
    """Rank 0 of two ranks, of which the other proposes ``proposal``."""

    def __init__(self, proposal):
        super().__init__(0, 2)
        self.proposal = proposal

    def all_reduce_max(self, values):
        return [max(values[0], self.proposal), *values[1:]]


class ConstantRequests:
    """A run folder with the same request at each poll."""

    def __init__(self, decision, stop_reason=None):
        self.decision, self.stop_reason = decision, stop_reason

    def poll(self, step):
        return self.decision


@pytest.mark.parametrize("requested", [None, StepDecision.CONTINUE, StepDecision.SAVE, StepDecision.STOP])
@pytest.mark.parametrize("peers", [StepDecision.CONTINUE, StepDecision.SAVE, StepDecision.STOP])
@pytest.mark.parametrize("has_batch", [True, False])
@pytest.mark.parametrize("signalled", [True, False])
def test_decision_is_the_largest_proposal(signalled, has_batch, peers, requested):
    stop_signal = StopSignal()
    if signalled:
        stop_signal.trigger(StopReason.SIGTERM)
    own = StepDecision.STOP if signalled or not has_batch else StepDecision.CONTINUE
    expected = max(own, peers, requested or StepDecision.CONTINUE)
    requests = None if requested is None else ConstantRequests(requested)
    agreement = StopAgreement(PeersProposing(peers), stop_signal, requests)
    assert agreement.decide(1, has_batch=has_batch) is expected


def test_stop_reason_prefers_a_signal_to_a_file():
    stop_signal = StopSignal()
    agreement = StopAgreement(SoloComm(), stop_signal, ConstantRequests(StepDecision.STOP, StopReason.STOP_FILE))
    assert agreement.stop_reason is StopReason.STOP_FILE
    stop_signal.trigger(StopReason.SIGTERM)
    assert agreement.stop_reason is StopReason.SIGTERM
    assert StopAgreement(SoloComm(), StopSignal()).stop_reason is None
