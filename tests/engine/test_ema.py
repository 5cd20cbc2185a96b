import pytest
import torch
from torch import nn

from hsadml_dist.data.batch import Batch
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.ddp import DdpEngine, DdpOptions
from hsadml_dist.engine.ema import EMA_COUNT_GROUP, EMA_GROUP, ExponentialMovingAverage, ModelEma, with_weights

OPTIONS = "engine/ddp_ranks.py"


def course(steps, shape=(5, 3), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(steps)]


def averaged(values, decay):
    """Average step by step, in the plainest way."""
    average = values[0].double()
    for done, value in enumerate(values[1:], start=1):
        share = min(decay, (1 + done) / (10 + done))
        average = share * average + (1 - share) * value.double()
    return average


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.9999])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_average_follows_the_formula(decay, dtype, within):
    values = course(40, dtype=dtype)
    weights = [torch.empty(5, 3, dtype=dtype), torch.empty(2, dtype=dtype)]
    average = ExponentialMovingAverage(weights, decay)
    for value in values:
        weights[0].copy_(value)
        weights[1].copy_(value.flatten()[:2])
        average.update()
    torch.testing.assert_close(average.values[0].double(), averaged(values, decay), rtol=0, atol=within)
    assert torch.equal(average.values[1], average.values[0].flatten()[:2])
    assert average.values[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_initial_weights_have_no_lasting_influence():
    weight = torch.full((1,), 1e6)
    average = ExponentialMovingAverage([weight], 0.9999)
    for _ in range(100):
        average.update()
        weight.fill_(1.0)
    assert float(average.values[0]) == pytest.approx(1.0, abs=1e-3)


def test_loaded_average_continues_bit_identically_in_any_memory_format():
    weight = torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last)
    whole, again = ExponentialMovingAverage([weight], 0.7), ExponentialMovingAverage([weight], 0.7)
    for step, value in enumerate(course(20, weight.shape)):
        if step == 9:
            again.load([whole.values[0].contiguous()], whole.updates)
        weight.copy_(value)
        whole.update()
        if step >= 9:
            again.update()
    assert again.values[0].stride() == weight.stride()
    assert torch.equal(whole.values[0], again.values[0])
    assert whole.updates == again.updates == 20


def test_loading_an_empty_average_resets():
    average = ExponentialMovingAverage([torch.ones(2)], 0.5)
    average.update()
    average.load(None, 0)
    assert average.values is None
    assert average.updates == 0


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    net[0].bias.requires_grad_(False)
    return net


def batch(seed):
    image = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Batch(image=image, label=torch.zeros(4, dtype=torch.int64), keys=("",) * 4)


def engine_with_average(net, decay=0.25):
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    options = DdpOptions(ema_decay=decay)
    return DdpEngine(net, optimizer, SoloComm(), "fp32", torch.zeros(1, 1, 4, 4), options)


def test_evaluation_model_has_averages_and_current_buffers():
    net = small_net()
    engine = engine_with_average(net)
    assert engine.evaluation_model() is net, "nothing is averaged yet"
    seen = []
    for seed in range(4):
        engine.backward([batch(seed)], lambda emb, label: emb.square().sum())
        engine.apply(0.1)
        seen.append({name: p.detach().clone() for name, p in net.named_parameters()})
    judged = engine.evaluation_model()
    for name, p in judged.named_parameters():
        expected = averaged([weights[name] for weights in seen], 0.25)
        torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(judged[3].weight, net[3].weight)
    assert torch.equal(judged[0].bias, net[0].bias), "frozen"
    assert all(torch.equal(one, other) for one, other in zip(judged.buffers(), net.buffers(), strict=True))
    assert torch.equal(net[3].weight, seen[-1]["3.weight"]), "the network keeps its weights"


def test_discarded_step_is_not_averaged():
    net = small_net()
    engine = engine_with_average(net)
    for seed in range(2):
        engine.backward([batch(seed)], lambda emb, label: emb.square().sum())
        engine.apply(0.1)
    before = {name: value.clone() for name, value in engine.state()[EMA_GROUP].items()}
    engine.backward([batch(7)], lambda emb, label: emb.square().sum())
    engine.discard()
    after = engine.state()
    assert all(torch.equal(value, before[name]) for name, value in after[EMA_GROUP].items())
    assert int(after[EMA_COUNT_GROUP]["updates"]) == 2


def test_state_has_averages_of_trained_weights_only():
    engine = engine_with_average(small_net())
    assert engine.state()[EMA_GROUP] == {}
    engine.backward([batch(0)], lambda emb, label: emb.square().sum())
    engine.apply(0.1)
    assert engine.state()[EMA_GROUP].keys() == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}


def test_state_before_the_first_step_can_be_loaded():
    engine, other = engine_with_average(small_net()), engine_with_average(small_net())
    other.backward([batch(0)], lambda emb, label: emb.square().sum())
    other.apply(0.1)
    other.load(engine.state())
    assert other.state()[EMA_GROUP] == {}


def test_engine_without_ema_decay_has_no_average():
    net = small_net()
    engine = engine_with_average(net, decay=None)
    engine.backward([batch(0)], lambda emb, label: emb.square().sum())
    engine.apply(0.1)
    assert engine.evaluation_model() is net
    assert engine.state().keys() == {"model", "model_moments"}


def test_with_weights_shares_memory_and_drops_hooks():
    net, calls = small_net(), []
    net.register_forward_hook(lambda *parts: calls.append(parts))
    net.register_forward_pre_hook(lambda *parts: calls.append(parts))
    other = torch.zeros(2, 8)
    twin = with_weights(net, {"3.weight": other})
    assert twin[3].weight.data_ptr() == other.data_ptr()
    assert twin[0].weight.data_ptr() == net[0].weight.data_ptr()
    assert twin[1].running_mean is net[1].running_mean
    twin(torch.ones(2, 1, 4, 4))
    assert calls == []
    net(torch.ones(2, 1, 4, 4))
    assert len(calls) == 2


def test_averaged_model_keeps_tied_weights():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    average = ModelEma(net, 0.5)
    average.update()
    judged = average.averaged_model()
    assert judged[0].weight is judged[1].weight


@pytest.mark.parametrize("world", [1, 2, 3])
def test_average_matches_loop_on_any_world_size(ranks, world):
    for answer in ranks(OPTIONS, world, "averages"):
        expected, found = answer
        assert expected.keys() == found.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-14)


def test_average_loads_on_other_world_sizes(ranks, tmp_path):
    path = tmp_path / "state.pt"
    ranks(OPTIONS, 2, f"keep {path}")
    saved = torch.load(path)
    assert saved[EMA_GROUP]
    for world in (1, 3):
        for loaded in ranks(OPTIONS, world, f"load {path}"):
            assert loaded.keys() == saved.keys()
            for group, tensors in saved.items():
                assert all(torch.equal(value, loaded[group][name]) for name, value in tensors.items()), group
