import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hsadml_dist.config.recipe import OptimConfig
from hsadml_dist.optim import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    layer_scales,
    learning_rate,
    load_moments,
    moments,
    nonfinite_gradient,
    set_learning_rate,
)

CONFIGS = {
    "adamw": OptimConfig(name="adamw"),
    "sgd": OptimConfig(name="sgd"),
    "sgd without momentum": OptimConfig(name="sgd", momentum=0.0),
}


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3)).to(
        memory_format=torch.channels_last
    )


def do_step(net, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    net(torch.randn(5, 1, 4, 4, generator=generator)).square().sum().backward()
    optimizer.step()


def test_learning_rate_at_known_points():
    config = OptimConfig(lr=2.0, warmup_steps=4, lr_end=0.1)
    assert [learning_rate(config, step, 104) for step in (1, 2, 4)] == [0.5, 1.0, 2.0]
    assert learning_rate(config, 54, 104) == pytest.approx((2.0 + 0.2) / 2, rel=1e-12)
    assert learning_rate(config, 29, 104) == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2, rel=1e-12)
    assert learning_rate(config, 104, 104) == pytest.approx(0.2, rel=1e-12)
    assert learning_rate(config, 200, 104) == pytest.approx(0.2, rel=1e-12), "no second rise of the cosine"


def test_learning_rate_decreases_after_warmup():
    config = OptimConfig(lr=1.0, warmup_steps=10, lr_end=0.0)
    rates = [learning_rate(config, step, 100) for step in range(1, 101)]
    assert rates[:10] == [step / 10 for step in range(1, 11)]
    assert all(after < before for before, after in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0, abs=1e-15)


def test_learning_rate_without_warmup_and_constant():
    config = OptimConfig(lr=1.0, schedule="constant")
    assert {learning_rate(config, step, 10) for step in range(1, 11)} == {1.0}
    assert learning_rate(OptimConfig(lr=1.0, schedule="constant", warmup_steps=2), 1, 10) == 0.5
    assert learning_rate(OptimConfig(lr=1.0), 1, 1000) == pytest.approx(1.0, rel=1e-5)


def test_warmup_as_long_as_the_training():
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=5), 5, 5) == 1.0
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=5), 6, 5) == pytest.approx(0.01)


def undecayed(net, optimizer):
    """Name the parameters that a step with zero gradients leaves alone."""
    for p in net.parameters():
        nn.init.ones_(p)  # a bias of 0 would not show its decay
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    return {name for name, p in net.named_parameters() if torch.equal(p, before[name])}


@pytest.mark.parametrize("config", [OptimConfig(name="adamw"), OptimConfig(name="sgd")], ids=["adamw", "sgd"])
def test_only_matrices_and_kernels_have_weight_decay(config):
    net = small_net()
    optimizer = build_optimizer(net.parameters(), config, decay=True)
    assert undecayed(net, optimizer) == {"0.bias", "1.weight", "1.bias", "3.bias"}


def test_centres_have_no_weight_decay():
    net = small_net()
    optimizer = build_optimizer(net.parameters(), OptimConfig(weight_decay=0.5), decay=False)
    assert undecayed(net, optimizer) == {name for name, _ in net.named_parameters()}


def test_frozen_parameters_are_in_no_group():
    net = small_net()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net.parameters(), OptimConfig(), decay=True)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_set_learning_rate_reaches_all_groups():
    optimizer = build_optimizer(small_net().parameters(), OptimConfig(), decay=True)
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


DEPTHS = {"0.weight": 0, "0.bias": 0, "1.weight": 1, "1.bias": 1, "3.weight": 3, "3.bias": 3}


def test_layer_scales_decrease_with_distance_from_deepest():
    net = small_net()
    scales = layer_scales(net, DEPTHS, 0.5)
    by_name = {name: scales[p] for name, p in net.named_parameters()}
    assert by_name == {name: 0.5 ** (3 - depth) for name, depth in DEPTHS.items()}
    assert set(layer_scales(net, DEPTHS, 1.0).values()) == {1.0}
    assert layer_scales(net, DEPTHS, None) is None


def by_hand(net, config, rates, steps):
    """Return the weights after some steps with a learning rate for each parameter, in fp64 and the plainest way."""
    weights = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    twin = small_net().double()
    for step in range(1, steps + 1):
        twin.load_state_dict(weights)
        twin.zero_grad()
        image = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        twin(image.double()).square().sum().backward()
        for name, p in twin.named_parameters():
            w, g = weights[name], p.grad
            lr, decay = rates[name] / step, config.weight_decay if p.ndim >= 2 else 0.0
            if config.name == "sgd":
                first[name] = (first[name] * config.momentum if step > 1 else 0) + g + decay * w
                weights[name] = w - lr * first[name]
                continue
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g * g
            m, v = first[name] / (1 - config.beta1**step), second[name] / (1 - config.beta2**step)
            weights[name] = w - lr * decay * w - lr * m / (v.sqrt() + 1e-8)
    return weights


@pytest.mark.parametrize("layer_decay", [None, 0.6])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_with_layer_decay_match_manual_updates(name, layer_decay):
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.3)
    net = small_net().double()
    expected = by_hand(net, config, {n: 0.01 * (layer_decay or 1.0) ** (3 - d) for n, d in DEPTHS.items()}, 3)
    scales = layer_scales(net, DEPTHS, layer_decay)
    optimizer = build_optimizer(net.parameters(), config, decay=True, lr_scales=scales)
    for step in range(1, 4):
        set_learning_rate(optimizer, 0.01 / step)
        optimizer.zero_grad()
        image = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        net(image.double()).square().sum().backward()
        optimizer.step()
    for n, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), expected[n], rtol=0, atol=1e-13, msg=lambda text, n=n: f"{n}: {text}")


def test_layer_decay_keeps_norms_and_biases_without_weight_decay():
    net = small_net()
    scales = layer_scales(net, DEPTHS, 0.5)
    optimizer = build_optimizer(net.parameters(), OptimConfig(weight_decay=0.5), decay=True, lr_scales=scales)
    assert undecayed(net, optimizer) == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert {(group["lr_scale"], bool(group["weight_decay"])) for group in optimizer.param_groups} == {
        (0.125, True),
        (0.125, False),
        (0.25, False),
        (1.0, True),
        (1.0, False),
    }


def test_layer_decay_keeps_frozen_parameters_in_no_group():
    net = small_net()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net.parameters(), OptimConfig(), decay=True, lr_scales=layer_scales(net, DEPTHS, 0.5))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in net.parameters() if p.requires_grad}


def test_without_layer_decay_there_are_two_groups():
    net = small_net()
    optimizer = build_optimizer(net.parameters(), OptimConfig(weight_decay=0.3), decay=True)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert not any("lr_scale" in group for group in optimizer.param_groups)


@pytest.mark.parametrize("limit", [None, 0.5, 1e6])
def test_clip_gradients_scales_the_total_norm(limit):
    net = small_net().double()
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    before = torch.cat([p.grad.flatten().clone() for p in net.parameters()])
    norm = gradient_norm(net)
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-12)
    clip_gradients(net, limit, norm)
    after = torch.cat([p.grad.flatten() for p in net.parameters()])
    factor = 1.0 if limit is None or norm <= limit else limit / float(norm)
    # PyTorch divides by norm + 1e-6.
    torch.testing.assert_close(after, before * factor, rtol=2e-6 if factor < 1 else 0, atol=0)


def test_gradient_norm_without_gradients():
    net = small_net()
    assert float(gradient_norm(net)) == 0.0
    assert nonfinite_gradient(net) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_gradient_shows_in_norm_and_is_named(value):
    net = small_net()
    names = [name for name, _ in net.named_parameters()]
    for name, p in net.named_parameters():
        for other in net.parameters():
            other.grad = torch.zeros_like(other)
        p.grad.flatten()[-1] = value
        assert not gradient_norm(net).isfinite()
        assert nonfinite_gradient(net) == name
    net.get_parameter(names[0]).grad.fill_(value)
    assert nonfinite_gradient(net) == names[0]


def test_finite_norm_means_finite_squares():
    """Else a gradient without bounds could fill the second moment with infinities."""
    net = small_net()
    for exponent in (18, 19, 20, 30):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        net.get_parameter(next(name for name, _ in net.named_parameters())).grad.flatten()[0] = 10.0**exponent
        squares = [p.grad.square().isfinite().all() for p in net.parameters()]
        assert all(squares) or not gradient_norm(net).isfinite(), exponent


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loaded_moments_continue_bit_identically(config):
    net = small_net()
    optimizer = build_optimizer(net.parameters(), config, decay=True)
    for seed in range(3):
        do_step(net, optimizer, seed)
    saved = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in moments(optimizer, net).items()
    }
    twin = small_net(seed=9)
    twin.load_state_dict(net.state_dict())
    fresh = build_optimizer(twin.parameters(), config, decay=True)
    load_moments(fresh, twin, saved)
    assert moments(fresh, twin).keys() == saved.keys()
    for seed in range(3, 6):
        do_step(net, optimizer, seed)
        do_step(twin, fresh, seed)
    for (name, one), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_moment_names():
    net = small_net()
    adamw = build_optimizer(net.parameters(), OptimConfig(), decay=True)
    assert moments(adamw, net) == {}
    do_step(net, adamw, 0)
    names = {name for name, _ in net.named_parameters()}
    assert moments(adamw, net).keys() == {f"{n}:{key}" for n in names for key in ("step", "exp_avg", "exp_avg_sq")}
    sgd = build_optimizer(net.parameters(), OptimConfig(name="sgd"), decay=True)
    do_step(net, sgd, 0)
    assert moments(sgd, net).keys() == {f"{n}:momentum_buffer" for n in names}


def test_loaded_moments_are_copies_with_parameter_memory_format():
    net = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(net.parameters(), OptimConfig(), decay=True)
    net(torch.ones(1, 8, 5, 5)).sum().backward()
    optimizer.step()
    saved = {name: value.contiguous() for name, value in moments(optimizer, net).items()}
    load_moments(optimizer, net, saved)
    loaded = moments(optimizer, net)
    assert loaded["weight:exp_avg"].stride() == net.weight.stride() != saved["weight:exp_avg"].stride()
    optimizer.step()
    assert float(saved["weight:step"]) == 1.0, "a step after loading must not reach into what was loaded"


def test_step_count_of_scalar_parameter_keeps_its_dtype():
    module = nn.Module()
    module.bias = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = build_optimizer(module.parameters(), OptimConfig(name="adamw"), decay=False)
    module.bias.grad = torch.ones_like(module.bias)
    optimizer.step()
    saved = {name: value.clone() for name, value in moments(optimizer, module).items()}
    load_moments(optimizer, module, saved)
    assert {name: value.dtype for name, value in moments(optimizer, module).items()} == {
        name: value.dtype for name, value in saved.items()
    }
    assert saved["bias:step"].dtype != module.bias.dtype, "the same dtype shows nothing"


def test_loaded_moments_are_on_the_parameter_device():
    net = nn.Linear(3, 2, device="meta")
    optimizer = build_optimizer(net.parameters(), OptimConfig(), decay=True)
    saved = {"weight:step": torch.tensor(4.0), "weight:exp_avg": torch.ones(2, 3)}
    load_moments(optimizer, net, saved)
    assert {value.device.type for value in optimizer.state[net.weight].values()} == {"meta"}
