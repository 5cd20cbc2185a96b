import pytest
import torch
from torch import nn

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.selfcheck import check_gradients, reference_gradients
from hsadml_dist.errors import EngineError, ExitCode
from hsadml_dist.losses.margins import build_margin


@pytest.fixture(scope="module", params=[2, 3])
def told(request, ranks):
    """What two and three ranks were told, by the kind of engine."""
    return ranks("engine/selfcheck_ranks.py", request.param)


def test_correct_engine_passes_with_every_loss_layout_and_precision(told):
    for answer in told:
        assert {what for kind, what in answer.items() if kind.startswith("right")} == {"right"}


@pytest.mark.parametrize(("kind", "what"), [("AddsUp", "2 times"), ("MeanOfMeans", ""), ("Alone", ""), ("Forgets", "")])
def test_incorrect_engine_is_rejected_on_all_ranks(told, kind, what):
    for answer in told:
        assert answer[kind].startswith("the engine's gradients over ")
        assert "are not those of the mean over the global batch" in answer[kind]
        assert what in answer[kind]
        assert "\n" not in answer[kind]


def test_incorrect_centre_gradient_is_rejected(told):
    for answer in told:
        assert answer["centres"].startswith("the centres' gradients over ")


def test_overflow_is_reported_as_not_finite(told):
    for answer in told:
        assert answer["too much"].startswith("the engine's gradients on drawn samples are not finite")


def test_single_rank_needs_no_check():
    class Untouchable:
        model = nn.Identity()

        def gradients(self, part, loss_fn):
            raise AssertionError("asked")

    rule = reference_gradients(nn.Identity(), "fp32", build_margin("softmax"), 4, torch.zeros(1, 1, 4, 4), SoloComm())
    assert rule is None
    check_gradients(Untouchable(), rule, "replicated", SoloComm())


def test_engine_error_has_internal_exit_code():
    assert EngineError("x").exit_code is ExitCode.INTERNAL_ERROR
