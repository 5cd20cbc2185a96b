import pytest
import torch
from torch import nn

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.selfcheck import check_gradients, reference_gradients
from hsadml_dist.errors import EngineError, ExitCode
from hsadml_dist.losses.margins import build_margin


@pytest.fixture(scope="module", params=[2, 3])
def results(request, ranks):
    """Results of the check on two and three ranks, by engine."""
    return ranks("engine/selfcheck_ranks.py", request.param)


def test_correct_engine_passes_with_every_loss_layout_and_precision(results):
    for answer in results:
        assert {result for kind, result in answer.items() if kind.startswith("correct")} == {"unchanged"}


@pytest.mark.parametrize(
    ("kind", "fact"),
    [("SumsGradients", "2 times"), ("MeanOfMeans", ""), ("LocalGradients", ""), ("OmitsParameter", "")],
)
def test_incorrect_engine_is_rejected_on_all_ranks(results, kind, fact):
    for answer in results:
        assert answer[kind].startswith("the gradients of the engine over ")
        assert "are not those of the mean over the global batch" in answer[kind]
        assert fact in answer[kind]
        assert "\n" not in answer[kind]


def test_incorrect_centre_gradient_is_rejected(results):
    for answer in results:
        assert answer["centres"].startswith("the gradients of the centres over ")


def test_overflow_is_reported_as_not_finite(results):
    for answer in results:
        assert answer["overflow"].startswith("the gradients of the engine on random samples are not finite")


def test_single_rank_needs_no_check():
    class UnusedEngine:
        model = nn.Identity()

        def gradients(self, part, loss_fn):
            raise AssertionError("called")

    reference = reference_gradients(
        nn.Identity(), "fp32", build_margin("softmax"), 4, torch.zeros(1, 1, 4, 4), SoloComm()
    )
    assert reference is None
    check_gradients(UnusedEngine(), reference, "replicated", SoloComm())


def test_engine_error_has_internal_exit_code():
    assert EngineError("x").exit_code is ExitCode.INTERNAL_ERROR
