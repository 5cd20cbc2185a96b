import pytest
import torch
from hsadml_dist.data.batch import Batch
from torch import nn

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.ddp import DdpEngine
from hsadml_dist.losses.margins import build_margin
from hsadml_dist.models.network import prepare_model

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
def test_all_ranks_hold_the_same_to_the_last_bit(trained, world):
    first = trained[world][0]
    for answer in trained[world][1:]:
        for way in ("plain", "thirds", "sgd", "bf16"):
            assert_same(answer[way]["state"], first[way]["state"])
            assert answer[way]["reports"] == first[way]["reports"]


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("way", ["plain", "sgd"])
def test_the_number_of_ranks_changes_no_digit_that_counts(trained, world, way):
    one, many = trained[1][0][way], trained[world][0][way]
    assert_same(one["state"], many["state"], within=1e-12)
    for alone, together in zip(one["reports"], many["reports"], strict=True):
        assert together.loss == pytest.approx(alone.loss, rel=1e-12)
        assert together.grad_norm == pytest.approx(alone.grad_norm, rel=1e-11)
        assert together.lr == alone.lr


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_accumulation_changes_no_digit_that_counts(trained, world):
    answer = trained[world][0]
    assert_same(answer["plain"]["state"], answer["thirds"]["state"], within=1e-12)
    assert_same(answer["sgd"]["state"], answer["sgd thirds"]["state"], within=1e-12)
    norms = [[report.grad_norm for report in answer[way]["reports"]] for way in ("plain", "thirds")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-11)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_gradients_travel_once_a_step(trained, world):
    assert trained[world][0]["plain"]["quiet"] == 0
    assert trained[world][0]["thirds"]["quiet"] == 3 * 2, "of three parts, two go without a reduction"


@pytest.mark.parametrize("world", [1, 3])
def test_bf16_trains_fp32_weights_near_the_fp32_course(trained, world):
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
def test_neither_layout_nor_ranks_change_what_is_learnt(laid_out, loss, layout, world):
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
def test_what_else_a_head_has_is_learnt(laid_out, loss, group):
    """Else its being the same everywhere would show nothing."""
    start = {"bias": build_margin("sphereface2").reducer.initial_bias(3), "norms.mean": 20.0}[group]
    assert abs(float(laid_out[1][0][loss, "replicated"]["head"][group]) - start) > 1e-3


@pytest.fixture(scope="module")
def resumed(ranks):
    return ranks(SCRIPT, 3, "resume")


def test_state_comes_back_as_it_was(resumed):
    for answer in resumed:
        assert_same(answer["loaded"], answer["saved"])


def test_the_step_after_a_resume_is_the_same_to_the_last_bit(resumed):
    for answer in resumed:
        whole, again, _ = answer["states"]
        assert_same(whole, again)
        assert answer["reports"][0] == answer["reports"][1]


def test_without_settled_buckets_it_would_not_be(resumed):
    """What the dry pass at the start is for: else the reduction adds in another order once, after each resume."""
    whole, _, unsettled = resumed[0]["states"]
    assert any(not torch.equal(value, unsettled["model"][name]) for name, value in whole["model"].items())


@pytest.fixture(scope="module", params=[1, 2])
def clipped(request, ranks):
    return ranks(SCRIPT, request.param, "clip")[0]


def test_backbone_and_centres_are_clipped_each_by_itself(clipped):
    plain, short = clipped["plain"], clipped["clipped"]
    for group in ("model", "centres"):
        assert plain[group].norm() > 0.02
        assert float(short[group].norm()) == pytest.approx(0.01, rel=1e-3)
        torch.testing.assert_close(short[group] / 0.01, plain[group] / plain[group].norm(), rtol=1e-3, atol=1e-6)
    assert short["report"].grad_norm == plain["report"].grad_norm
    assert plain["report"].grad_norm == pytest.approx(float(plain["model"].norm()), rel=1e-9)


def test_the_first_pass_leaves_neither_gradients_nor_changed_buffers():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    engine = DdpEngine(net, optimizer, SoloComm(), "fp32", None, torch.zeros(1, 1, 4, 4))
    engine._replica = net
    engine._settle_buckets(torch.ones(2, 1, 4, 4), 2)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert all(p.grad is None for p in net.parameters())


def test_parts_without_samples_do_no_harm():
    net = prepare_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), torch.device("cpu"), "fp64")
    engine = DdpEngine(net, torch.optim.SGD(net.parameters()), SoloComm(), "fp64", None, torch.zeros(1, 1, 4, 4))
    batch = Batch(
        image=torch.ones(1, 1, 4, 4, dtype=torch.float64), label=torch.zeros(1, dtype=torch.int64), keys=("a",)
    )
    outcome = engine.backward(batch.microbatches(3), lambda emb, label: emb.sum())
    assert [len(part.keys) for part in batch.microbatches(3)] == [0, 0, 1]
    assert torch.isfinite(outcome.loss)
    assert float(outcome.grad_norm) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_placed_sets_dtype_and_channels_last(precision):
    net = prepare_model(nn.Conv2d(4, 3, 3), torch.device("cpu"), precision)
    assert net.weight.dtype == {"fp64": torch.float64}.get(precision, torch.float32)
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
    assert prepare_model(nn.Conv3d(4, 3, 3), torch.device("cpu"), precision).weight.is_contiguous()


OPTIONS = "engine/ddp_ranks.py"


@pytest.fixture(scope="module")
def optional(ranks):
    """Answers of all ranks after three steps in all ways of the options, by the number of ranks."""
    return {world: ranks(OPTIONS, world, "ways") for world in (1, 2, 3)}


@pytest.mark.parametrize("world", [2, 3])
def test_with_options_all_ranks_hold_the_same_to_the_last_bit(optional, world):
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
def test_static_graph_and_recomputation_change_no_bit(optional, way, plain, world):
    for answer in optional[world]:
        assert_same(answer[way]["state"], answer[plain]["state"])
        assert_same({"": answer[way]["gradients"]}, {"": answer[plain]["gradients"]})
        assert answer[way]["told"] == answer[plain]["told"]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    "way", [(), ("thirds",), ("static", "thirds", "frozen", "unused"), ("average", "frozen", "sgd")]
)
def test_with_options_the_number_of_ranks_changes_no_digit_that_counts(optional, way, world):
    one, many = optional[1][0][way], optional[world][0][way]
    assert_same(one["state"], many["state"], within=1e-12)
    assert_same({"": one["gradients"]}, {"": many["gradients"]}, within=1e-12)


def test_the_net_that_draws_does_draw(optional):
    one, other = (optional[1][0][way]["told"] for way in (("thirds",), ("drawing", "thirds")))
    assert one != other


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("way", [("frozen", "thirds"), ("static", "thirds", "frozen", "unused")])
def test_what_is_frozen_or_unused_stays_as_it_was(optional, way, world):
    start = dict(optional[1][0][()]["start"])
    answer = optional[world][0][way]
    still = {"stem.weight", "stem.bias", "blocks.0.1.weight"} | ({"lost"} if "unused" in way else set())
    for name, value in answer["state"]["model"].items():
        before = start.get(name, torch.ones(7, dtype=torch.float64))
        assert torch.equal(value, before) == (name in still), name
    assert not {name.partition(":")[0] for name in answer["state"]["model_moments"]} & still
    assert not answer["gradients"].keys() & still


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_lie_in_the_buckets_and_nowhere_else(optional, world):
    for way, answer in optional[world][0].items():
        assert answer["homes"] == 1, way


@pytest.fixture(scope="module")
def resumed_with_options(ranks):
    return ranks(OPTIONS, 3, "resume")


def test_with_options_a_resumed_run_goes_on_to_the_last_bit(resumed_with_options):
    for answer in resumed_with_options:
        for whole, again, _ in answer.values():
            assert_same(whole, again)


def test_a_static_graph_settles_its_buckets_only_after_a_second_pass(resumed_with_options):
    """What the second dry pass is for."""
    for way, (whole, _, once) in resumed_with_options[0].items():
        same = all(torch.equal(value, once["model"][name]) for name, value in whole["model"].items())
        assert same == ("static" not in way), way
