import pytest
import torch
from torch import nn

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.ddp import DdpEngine
from hsadml_dist.losses.margins import build_margin

SCRIPT = "engine/learner_ranks.py"


@pytest.fixture(scope="module")
def trained(ranks):
    """Answers of all ranks after three steps, by the number of ranks."""
    return {world: ranks(SCRIPT, world, "train") for world in (1, 2, 3, 4)}


def assert_same(one, other, *, within=0.0):
    assert one.keys() == other.keys()
    for group in one:
        assert one[group].keys() == other[group].keys()
        for name, value in one[group].items():
            torch.testing.assert_close(
                value, other[group][name], rtol=0, atol=within, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_all_ranks_are_bit_identical(trained, world):
    first = trained[world][0]
    for answer in trained[world][1:]:
        for way in ("plain", "thirds", "sgd", "bf16"):
            assert_same(answer[way]["state"], first[way]["state"])
            assert answer[way]["reports"] == first[way]["reports"]


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("way", ["plain", "sgd"])
def test_result_does_not_depend_on_world_size(trained, world, way):
    one, many = trained[1][0][way], trained[world][0][way]
    assert_same(one["state"], many["state"], within=1e-12)
    for alone, together in zip(one["reports"], many["reports"], strict=True):
        assert together.loss == pytest.approx(alone.loss, rel=1e-12)
        assert together.grad_norm == pytest.approx(alone.grad_norm, rel=1e-11)
        assert together.lr == alone.lr


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_result_does_not_depend_on_accumulation(trained, world):
    answer = trained[world][0]
    assert_same(answer["plain"]["state"], answer["thirds"]["state"], within=1e-12)
    assert_same(answer["sgd"]["state"], answer["sgd thirds"]["state"], within=1e-12)
    norms = [[report.grad_norm for report in answer[way]["reports"]] for way in ("plain", "thirds")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-11)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_gradients_are_reduced_once_per_step(trained, world):
    assert trained[world][0]["plain"]["quiet"] == 0
    assert trained[world][0]["thirds"]["quiet"] == 3 * 2, "of three parts, two go without a reduction"


@pytest.mark.parametrize("world", [1, 3])
def test_bf16_trains_fp32_weights_close_to_fp32(trained, world):
    half, full = trained[world][0]["bf16"], trained[world][0]["fp32"]
    assert {t.dtype for group in half["state"].values() for t in group.values()} == {torch.float32}
    for low, high in zip(half["reports"], full["reports"], strict=True):
        assert low.loss == pytest.approx(high.loss, rel=0.05)
        assert low.loss != high.loss, "nothing was rounded: this was no bf16"


@pytest.fixture(scope="module")
def laid_out(ranks):
    """Answers of all ranks after three steps with either layout of the centres, by the number of ranks."""
    return {world: ranks(SCRIPT, world, "layouts") for world in (1, 2, 3, 4)}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", ["replicated", "sharded"])
@pytest.mark.parametrize("loss", ["sphereface", "sphereface2 and energy", "adaface", "sampled"])
def test_result_does_not_depend_on_layout_or_world_size(laid_out, loss, layout, world):
    one = laid_out[1][0][loss, "replicated"]
    answers = [answer[loss, layout] for answer in laid_out[world]]
    assert sum(answer["rows"] for answer in answers) == 3 * (world if layout == "replicated" else 1)
    for many in answers:
        assert_same({"centres": {"all": one["centres"]}}, {"centres": {"all": many["centres"]}}, within=1e-12)
        assert_same(*({n: g for n, g in run.items() if n.startswith("head")} for run in (one, many)), within=1e-11)
        for alone, together in zip(one["reports"], many["reports"], strict=True):
            assert together.loss == pytest.approx(alone.loss, rel=1e-12)
            assert together.grad_norm == pytest.approx(alone.grad_norm, rel=1e-11)


@pytest.mark.parametrize(("loss", "group"), [("sphereface2 and energy", "bias"), ("adaface", "norms.mean")])
def test_bias_and_norm_statistics_are_trained(laid_out, loss, group):
    """Else its being the same everywhere would show nothing."""
    start = {"bias": build_margin("sphereface2").reducer.initial_bias(3), "norms.mean": 20.0}[group]
    assert abs(float(laid_out[1][0][loss, "replicated"]["head"][group]) - start) > 1e-3


@pytest.fixture(scope="module")
def resumed(ranks):
    return ranks(SCRIPT, 3, "resume")


def test_loaded_state_equals_saved_state(resumed):
    for answer in resumed:
        assert_same(answer["loaded"], answer["saved"])


def test_step_after_resume_is_bit_identical(resumed):
    for answer in resumed:
        whole, again, _ = answer["states"]
        assert_same(whole, again)
        assert answer["reports"][0] == answer["reports"][1]


def test_step_after_resume_differs_without_bucket_warm_up(resumed):
    """What the dry pass at the start is for: else the reduction adds in another order once, after each resume."""
    whole, _, unsettled = resumed[0]["states"]
    assert any(not torch.equal(value, unsettled["model"][name]) for name, value in whole["model"].items())


@pytest.fixture(scope="module", params=[1, 2])
def clipped(request, ranks):
    return ranks(SCRIPT, request.param, "clip")[0]


def test_backbone_and_centres_are_clipped_separately(clipped):
    plain, short = clipped["plain"], clipped["clipped"]
    for group in ("model", "centres"):
        assert plain[group].norm() > 0.02
        assert float(short[group].norm()) == pytest.approx(0.01, rel=1e-3)
        torch.testing.assert_close(short[group] / 0.01, plain[group] / plain[group].norm(), rtol=1e-3, atol=1e-6)
    assert short["report"].grad_norm == plain["report"].grad_norm
    assert plain["report"].grad_norm == pytest.approx(float(plain["model"].norm()), rel=1e-9)


def test_warm_up_leaves_no_gradients_and_keeps_buffers():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    engine = DdpEngine(net, optimizer, SoloComm(), "fp32", torch.zeros(1, 1, 4, 4))
    engine.warm_up_buckets(torch.ones(2, 1, 4, 4), 2)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert all(p.grad is None for p in net.parameters())


def test_backward_accepts_empty_microbatches():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).double()
    engine = DdpEngine(net, torch.optim.SGD(net.parameters()), SoloComm(), "fp64", torch.zeros(1, 1, 4, 4))
    batch = Batch(
        image=torch.ones(1, 1, 4, 4, dtype=torch.float64), label=torch.zeros(1, dtype=torch.int64), keys=("a",)
    )
    outcome = engine.backward(batch.microbatches(3), lambda emb, label: emb.sum())
    assert [len(part.keys) for part in batch.microbatches(3)] == [0, 0, 1]
    assert torch.isfinite(outcome.loss)
    assert float(outcome.grad_norm) > 0


OPTIONS = "engine/ddp_ranks.py"


@pytest.fixture(scope="module")
def optional(ranks):
    """Answers of all ranks after three steps in all ways of the options, by the number of ranks."""
    return {world: ranks(OPTIONS, world, "ways") for world in (1, 2, 3)}


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_are_bit_identical_with_options(optional, world):
    first = optional[world][0]
    for answer in optional[world][1:]:
        for way in first:
            assert_same(answer[way]["state"], first[way]["state"])
            assert_same({"": answer[way]["gradients"]}, {"": first[way]["gradients"]})
            assert [norm for _, norm in answer[way]["told"]] == [norm for _, norm in first[way]["told"]]


SAME = {
    ("static",): (),
    ("static", "thirds"): ("thirds",),
    ("recomputing",): (),
    ("recomputing", "thirds", "drawing"): ("drawing", "thirds"),
    ("static", "recomputing", "thirds", "drawing"): ("drawing", "thirds"),
    ("bf16", "thirds", "static"): ("bf16", "thirds"),
    ("bf16", "thirds", "recomputing"): ("bf16", "thirds"),
}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("way", "plain"), SAME.items(), ids=" ".join)
def test_static_graph_and_checkpointing_are_bit_identical(optional, way, plain, world):
    for answer in optional[world]:
        assert_same(answer[way]["state"], answer[plain]["state"])
        assert_same({"": answer[way]["gradients"]}, {"": answer[plain]["gradients"]})
        assert answer[way]["told"] == answer[plain]["told"]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    "way", [(), ("thirds",), ("static", "thirds", "frozen", "unused"), ("average", "frozen", "sgd")]
)
def test_result_with_options_does_not_depend_on_world_size(optional, way, world):
    one, many = optional[1][0][way], optional[world][0][way]
    assert_same(one["state"], many["state"], within=1e-12)
    assert_same({"": one["gradients"]}, {"": many["gradients"]}, within=1e-12)


def test_network_with_dropout_draws_random_numbers(optional):
    one, other = (optional[1][0][way]["told"] for way in (("thirds",), ("drawing", "thirds")))
    assert one != other


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("way", [("frozen", "thirds"), ("static", "thirds", "frozen", "unused")])
def test_frozen_and_unused_parameters_do_not_change(optional, way, world):
    start = dict(optional[1][0][()]["start"])
    answer = optional[world][0][way]
    still = {"stem.weight", "stem.bias", "blocks.0.1.weight"} | ({"lost"} if "unused" in way else set())
    for name, value in answer["state"]["model"].items():
        before = start.get(name, torch.ones(7, dtype=torch.float64))
        assert torch.equal(value, before) == (name in still), name
    assert not {name.partition(":")[0] for name in answer["state"]["model_moments"]} & still
    assert not answer["gradients"].keys() & still


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_views_of_the_buckets(optional, world):
    for way, answer in optional[world][0].items():
        assert answer["homes"] == 1, way


@pytest.fixture(scope="module")
def resumed_with_options(ranks):
    return ranks(OPTIONS, 3, "resume")


def test_resume_with_options_is_bit_identical(resumed_with_options):
    for answer in resumed_with_options:
        for whole, again, _ in answer.values():
            assert_same(whole, again)


def test_static_graph_needs_a_second_warm_up_pass(resumed_with_options):
    """What the second dry pass is for."""
    for way, (whole, _, once) in resumed_with_options[0].items():
        same = all(torch.equal(value, once["model"][name]) for name, value in whole["model"].items())
        assert same == ("static" not in way), way
