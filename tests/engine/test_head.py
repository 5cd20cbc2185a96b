import pytest
import torch

from hsadml_dist.config.recipe import OptimConfig
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.engine.head import Head
from hsadml_dist.losses.centres import Centres, hyperspherical_energy
from hsadml_dist.losses.distributed_loss import DistributedLoss
from hsadml_dist.losses.margins import build_margin
from hsadml_dist.optim import build_optimizer


class FourLikeMe(SoloComm):
    """Stands for four ranks that all hold what this one holds, times their number from 1."""

    def __init__(self):
        super().__init__()
        self.topology = Topology(world_size=4)

    def all_reduce_sum(self, tensor):
        return tensor.mul_(1 + 2 + 3 + 4)


class TwinOfTwo(SoloComm):
    """Rank 0 of two whose gradients and statistics are those of the other times what is told."""

    def __init__(self, factor):
        super().__init__()
        self.topology, self.factor, self.messages = Topology(world_size=2), factor, []

    def all_reduce_sum(self, tensor):
        self.messages.append(tensor.numel())
        return tensor.mul_(1 + self.factor)

    def all_gather_rows(self, rows_ND, sizes=None):
        return torch.cat([rows_ND, self.factor * rows_ND])


def make_head(comm=None, clip_norm=None, *, name="softmax", layout="replicated", energy_weight=0.0, optimizer="sgd"):
    config = OptimConfig(name=optimizer, momentum=0.0)
    comm = comm or SoloComm()
    loss = DistributedLoss(Centres(3, 4, seed=0), build_margin(name), comm, layout).double()
    return Head(loss, build_optimizer(loss.parameters(), config, decay=False), comm, clip_norm, energy_weight)


def pull(head, value=1.0):
    head.zero_grad()
    head.loss.centres.weight.grad = torch.full((3, 4), value, dtype=torch.float64)


def finish(head, lr):
    """Do what is left of a step; return the norm before clipping."""
    norm = head.grad_norm()
    before = float(norm)
    head.apply(lr, norm)
    return before


def test_gradients_and_loss_are_averaged_over_ranks():
    head = make_head(FourLikeMe())
    before = head.loss.centres.weight.detach().clone()
    pull(head)
    assert float(head.average_gradients(torch.tensor(3.0, dtype=torch.float64))) == 7.5
    norm = finish(head, lr=0.1)
    assert norm == pytest.approx(2.5 * 12**0.5, rel=1e-12)
    torch.testing.assert_close(head.loss.centres.weight.detach(), before - 0.1 * 2.5, rtol=0, atol=1e-15)


def test_clipping_uses_the_averaged_norm():
    head = make_head(FourLikeMe(), clip_norm=1.0)
    before = head.loss.centres.weight.detach().clone()
    pull(head)
    head.average_gradients(torch.zeros((), dtype=torch.float64))
    assert finish(head, lr=1.0) == pytest.approx(2.5 * 12**0.5, rel=1e-12), "the norm before clipping is told"
    assert float((head.loss.centres.weight.detach() - before).norm()) == pytest.approx(1.0, rel=1e-5)


def test_zero_grad_clears_gradients():
    head = make_head()
    pull(head)
    head.zero_grad()
    assert head.loss.centres.weight.grad is None


def test_load_restores_weights_and_moments():
    head, twin = (make_head(optimizer="adamw") for _ in range(2))
    for value in (1.0, -2.0):
        pull(head, value)
        finish(head, lr=0.1)
    state = {group: {n: t.clone() for n, t in tensors.items()} for group, tensors in head.state().items()}
    assert state.keys() == {"centres", "centres_moments"}
    assert state["centres_moments"].keys() == {"weight:step", "weight:exp_avg", "weight:exp_avg_sq"}
    twin.load(state)
    for one in (head, twin):
        pull(one, 0.5)
        finish(one, lr=0.1)
    assert torch.equal(head.loss.centres.weight, twin.loss.centres.weight)
    assert head.state()["centres_moments"]["weight:step"] == 3


ZERO = torch.zeros((), dtype=torch.float64)


def test_sharded_centres_are_not_averaged_but_shared_parameters_are():
    comm = TwinOfTwo(3.0)
    head = make_head(comm, name="sphereface2", layout="sharded")
    pull(head)
    head.loss.bias.grad = torch.tensor(5.0, dtype=torch.float64)
    assert float(head.average_gradients(ZERO + 2)) == 4.0
    assert torch.equal(head.loss.centres.weight.grad, torch.ones(3, 4, dtype=torch.float64))
    assert float(head.loss.bias.grad) == 10.0
    assert comm.messages == [2], "bias and loss travel together, centres do not"


def test_grad_norm_of_sharded_centres_includes_all_ranks():
    head = make_head(TwinOfTwo(3.0), name="sphereface2", layout="sharded", clip_norm=1.0)
    weight, bias = head.loss.centres.weight.detach().clone(), head.loss.bias.detach().clone()
    pull(head)
    head.loss.bias.grad = torch.tensor(4.0, dtype=torch.float64)
    norm = (12 * (1 + 3) + 4**2) ** 0.5
    assert finish(head, lr=1.0) == pytest.approx(norm, rel=1e-12)
    torch.testing.assert_close(head.loss.centres.weight.detach(), weight - 1 / norm, rtol=0, atol=1e-6)
    torch.testing.assert_close(head.loss.bias.detach(), bias - 4 / norm, rtol=0, atol=1e-6)


@pytest.mark.parametrize("comm", [SoloComm, FourLikeMe])
def test_energy_is_added_to_loss_and_gradient(comm):
    """Four ranks find the same energy each; here they weigh 1 to 4, so 2.5 on average."""
    head = make_head(comm(), energy_weight=0.3)
    centres = Centres(3, 4, seed=0).double()
    value = hyperspherical_energy(centres, "replicated", SoloComm())
    value.backward()
    pull(head)
    mean = 1.0 if comm is SoloComm else 2.5
    assert float(head.average_gradients(ZERO + 2)) == pytest.approx(mean * (2 + 0.3 * float(value.detach())), rel=1e-12)
    expected = mean * (1 + 0.3 * centres.weight.grad)
    torch.testing.assert_close(head.loss.centres.weight.grad, expected, rtol=1e-12, atol=0)


def test_norm_statistics_are_updated_once_per_step():
    head = make_head(name="adaface")
    emb = torch.full((4, 4), 2.0, dtype=torch.float64).requires_grad_()
    for part in emb.split(2):
        head.loss(part, torch.tensor([0, 1]), step=1, count=4).backward()
    head.average_gradients(ZERO)
    finish(head, lr=0.1)
    assert float(head.loss.norms.mean) == pytest.approx(0.99 * 20 + 0.01 * 4)


@pytest.mark.parametrize(
    ("name", "extra", "moved"),
    [
        ("cosface", set(), set()),
        ("sphereface2", {"bias"}, {"bias:step", "bias:exp_avg", "bias:exp_avg_sq"}),
        ("adaface", {"norms.mean", "norms.deviation"}, set()),
    ],
)
def test_bias_and_statistics_are_saved_and_loaded(name, extra, moved):
    head, twin = (make_head(name=name, optimizer="adamw") for _ in range(2))
    for step in (1, 2):
        head.zero_grad()
        emb = torch.full((4, 4), 2.0 * step, dtype=torch.float64).requires_grad_()
        head.loss(emb, torch.tensor([0, 1, 2, 0]), step=step, count=4).backward()
        head.average_gradients(ZERO)
        finish(head, lr=0.1)
    state = {group: {n: t.clone() for n, t in tensors.items()} for group, tensors in head.state().items()}
    assert state.get("head", {}).keys() == extra
    assert state.get("head_moments", {}).keys() == moved
    assert ("head" in state, "head_moments" in state) == (bool(extra), bool(moved)), "no empty groups"
    twin.load(state)
    for group, tensors in twin.state().items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, state[group][key]), key
    assert twin.state().keys() == state.keys()


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_gather_centres_gathers_only_sharded_rows(layout):
    head = make_head(TwinOfTwo(2.0), layout=layout)
    weight = head.loss.centres.weight.detach()
    expected = torch.cat([weight, 2 * weight]) if layout == "sharded" else weight
    assert torch.equal(head.gather_centres(), expected)
    assert not head.gather_centres().requires_grad
