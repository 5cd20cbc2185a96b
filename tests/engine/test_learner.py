from dataclasses import replace

import pytest
import torch
from torch import nn

from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import DataConfig, EngineConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.engine.base import BackwardResult
from hsadml_dist.engine.learner import Learner, build_learner
from hsadml_dist.errors import ConfigError
from hsadml_dist.model_factory import build_network, loss_scale
from hsadml_dist.optim import learning_rate

RECIPE = Recipe(
    data=DataConfig(shards="none", image_size=16),
    model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
    loss=LossConfig(name="cosface"),
    optim=OptimConfig(lr=0.01, head_lr_factor=3.0, warmup_steps=2),
    train=TrainConfig(steps=10, global_batch=6, seed=3),
    engine=EngineConfig(precision="fp64"),
)


def batch(seed=0, size=6):
    image = torch.randn(size, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(image=image, label=torch.arange(size) % 3, keys=tuple(map(str, range(size))))


def make(recipe=RECIPE):
    return build_learner(recipe, build_network(recipe), 3, SoloComm(), 10)


class FakeEngine:
    """Reports an outcome and remembers what it was asked."""

    def __init__(self):
        self.model, self.calls, self.rates, self.drawn = nn.Identity(), [], [], []

    def backward(self, parts, loss_fn):
        self.calls.append((parts, loss_fn))
        self.drawn.append(torch.rand(1).item())
        return BackwardResult(loss=torch.tensor(8.0), grad_norm=torch.tensor(0.5))

    def apply(self, lr):
        self.rates.append(lr)


class FakeHead:
    classes = 3

    def __init__(self, comm=None):
        self.rates, self.cleared, self.comm = [], 0, comm or SoloComm()

    def zero_grad(self):
        self.cleared += 1

    def average_gradients(self, loss):
        return self.comm.all_reduce_sum(loss) / self.comm.topology.world_size

    def grad_norm(self):
        return torch.tensor(0.25)

    def apply(self, lr, norm):
        assert float(norm) == 0.25
        self.rates.append(lr)


class RankOfTwo(SoloComm):
    """Rank 1 of two; the other one's loss was 2."""

    def __init__(self, rank=1):
        super().__init__()
        self.topology = Topology(rank=rank, world_size=2)

    def all_reduce_sum(self, tensor):
        return tensor.add_(2.0)


def test_steps_reduce_the_loss():
    learner = make(replace(RECIPE, loss=LossConfig(name="softmax", scale=8.0), optim=OptimConfig(lr=0.02)))
    waves = torch.sin(torch.arange(16.0) * torch.arange(6).remainder(3)[:, None, None, None]).expand(6, 1, 16, 16)
    losses = [learner.step(step, replace(batch(), image=waves)).loss for step in range(1, 11)]
    assert losses[-1] < 0.5 * losses[0]


def test_learning_rate_follows_schedule_and_head_factor():
    engine, head = FakeEngine(), FakeHead()
    learner = Learner(RECIPE, engine, head, SoloComm(), 10)
    reports = [learner.step(step, batch()) for step in (1, 2, 7)]
    expected = [learning_rate(RECIPE.optim, step, 10) for step in (1, 2, 7)]
    assert [report.lr for report in reports] == expected
    assert engine.rates == expected
    assert head.rates == [3.0 * lr for lr in expected]
    assert head.cleared == 3


def test_reported_loss_is_the_mean_over_ranks():
    report = Learner(RECIPE, FakeEngine(), FakeHead(RankOfTwo()), RankOfTwo(), 10).step(1, batch())
    assert (report.loss, report.grad_norm) == ((8.0 + 2.0) / 2, 0.5)


def test_random_state_depends_only_on_seed_step_and_rank():
    def drawn(step, rank, seed=3):
        engine = FakeEngine()
        recipe = replace(RECIPE, train=replace(RECIPE.train, seed=seed))
        torch.rand(step + rank)
        Learner(recipe, engine, FakeHead(), RankOfTwo(rank), 10).step(step, batch())
        return engine.drawn[0]

    assert drawn(4, 0) == drawn(4, 0)
    assert len({drawn(4, 0), drawn(5, 0), drawn(4, 1), drawn(4, 0, seed=4)}) == 4


def test_batch_is_split_into_microbatches_and_converted():
    engine = FakeEngine()
    recipe = replace(RECIPE, engine=replace(RECIPE.engine, accumulate=2))
    Learner(recipe, engine, FakeHead(), SoloComm(), 10).step(1, batch())
    parts = engine.calls[0][0]
    assert [len(part.keys) for part in parts] == [3, 3]
    assert torch.equal(torch.cat([part.image for part in parts]), batch().image.double())
    assert parts[0].image.dtype == torch.float64


def test_state_groups_and_names():
    learner = make()
    learner.step(1, batch())
    state = learner.state()
    assert state.keys() == {"model", "model_moments", "centres", "centres_moments"}
    names = {name for name, _ in learner.engine.model.named_parameters()}
    assert state["model"].keys() == names
    assert {name.rpartition(":")[0] for name in state["model_moments"]} == names


def test_loaded_learner_continues_identically():
    whole, other = make(), make(replace(RECIPE, train=replace(RECIPE.train, seed=99)))
    for step in (1, 2):
        whole.step(step, batch(step))
    other.load({group: {n: t.clone() for n, t in tensors.items()} for group, tensors in whole.state().items()})
    assert (whole.engine.model.neck.weight == other.engine.model.neck.weight).all()
    one, two = whole.state(), other.state()
    assert all(torch.equal(value, two[group][name]) for group in one for name, value in one[group].items())


def test_network_weights_depend_on_the_seed():
    one, again, other = (build_network(replace(RECIPE, train=replace(RECIPE.train, seed=s))) for s in (3, 3, 4))
    assert torch.equal(one.neck.weight, again.neck.weight)
    assert not torch.equal(one.neck.weight, other.neck.weight)


def test_invalid_margin_is_a_config_error():
    with pytest.raises(ConfigError, match=r"loss\.margin"):
        make(replace(RECIPE, loss=LossConfig(name="softmax", margin=0.5)))


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        (LossConfig(name="softmax"), 30),
        (LossConfig(name="cosface"), 64),
        (LossConfig(name="sphereface"), None),
        (LossConfig(name="sphereface", scale=12), 12),
    ],
)
def test_loss_scale_is_the_default_of_the_loss(loss, scale):
    assert loss_scale(loss) == scale


def reports_of(loss):
    learner = make(replace(RECIPE, loss=loss, optim=OptimConfig(lr=0.01)))
    return [learner.step(step, batch(step)).loss for step in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("cosface", {"margin": 0.1}),
        ("cosface", {"scale": 8.0}),
        ("arcface", {"grad_mode": "characteristic"}),
        ("cosface", {"energy": 0.5}),
        ("cosface", {"sample_rate": 0.4}),
        ("sphereface", {"lambda_base": 10.0}),
        ("sphereface", {"lambda_gamma": 9.0}),
        ("sphereface", {"lambda_power": 3.0}),
        ("sphereface", {"lambda_base": 1.0, "lambda_min": 0.0}),
        ("sphereface2", {"positive_weight": 0.4}),
        ("sphereface2", {"sharpness": 2.0}),
        ("adaface", {"norm_concentration": 3.0}),
        ("adaface", {"norm_momentum": 0.5}),
    ],
)
def test_every_loss_setting_changes_the_loss(name, changed):
    plain, other = reports_of(LossConfig(name=name)), reports_of(LossConfig(name=name, **changed))
    assert plain != other


@pytest.mark.parametrize("changed", [{"layout": "sharded"}, {"backward": "stream"}, {"memory_mib": 1e-9}])
def test_compute_settings_do_not_change_the_loss(changed):
    assert reports_of(LossConfig(name="arcface", **changed)) == pytest.approx(reports_of(LossConfig(name="arcface")))


@pytest.mark.parametrize(("layout", "taken"), [("auto", "replicated"), ("sharded", "sharded")])
def test_layout_of_the_recipe_is_used(layout, taken):
    assert make(replace(RECIPE, loss=LossConfig(layout=layout))).head.loss.layout == taken


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.float32), ("fp32", torch.float32), ("fp64", torch.float64)]
)
def test_head_parameters_have_run_precision_and_statistics_fp64(precision, dtype):
    for name in ("sphereface2", "adaface"):
        engine = replace(RECIPE.engine, precision=precision)
        head = make(replace(RECIPE, loss=LossConfig(name=name), engine=engine)).head
        assert {parameter.dtype for parameter in head.loss.parameters()} == {dtype}
        assert {buffer.dtype for buffer in head.loss.buffers()} <= {torch.float64}


@pytest.mark.parametrize(("name", "groups"), [("sphereface2", {"head", "head_moments"}), ("adaface", {"head"})])
def test_state_includes_other_tensors_of_the_loss(name, groups):
    learner = make(replace(RECIPE, loss=LossConfig(name=name)))
    learner.step(1, batch())
    assert learner.state().keys() == {"model", "model_moments", "centres", "centres_moments"} | groups
