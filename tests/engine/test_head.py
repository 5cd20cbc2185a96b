import pytest
import torch

from hsadml_dist.comm import SoloComm
from hsadml_dist.config.optim import OptimConfig
from hsadml_dist.engine.head import Head
from hsadml_dist.losses.centres import Centres
from hsadml_dist.losses.distributed import DistributedLoss
from hsadml_dist.losses.margins import build_margin
from hsadml_dist.optim import build_optimizer
from hsadml_dist.topology import Topology


class FourLikeMe(SoloComm):
    """Stands for four ranks that all hold what this one holds, times their number from 1."""

    def __init__(self):
        super().__init__()
        self.topology = Topology(world_size=4)

    def sum(self, tensor):
        return tensor.mul_(1 + 2 + 3 + 4)


def make_head(comm=None, clip_norm=None, **settings):
    config = OptimConfig(**{"name": "sgd", "momentum": 0.0, **settings})
    centres = Centres(3, 4, seed=0).double()
    comm = comm or SoloComm()
    loss = DistributedLoss(centres, build_margin("softmax"), comm)
    return Head(loss, build_optimizer(centres.parameters(), config, decay=False), comm, clip_norm)


def pull(head, value=1.0):
    head.clear()
    head.loss.centres.weight.grad = torch.full((3, 4), value, dtype=torch.float64)


def test_gradients_and_the_loss_are_averaged_over_the_ranks():
    head = make_head(FourLikeMe())
    before = head.loss.centres.weight.detach().clone()
    pull(head)
    assert float(head.average(torch.tensor(3.0, dtype=torch.float64))) == 7.5
    norm = head.step(lr=0.1)
    assert norm == pytest.approx(2.5 * 12**0.5, rel=1e-12)
    torch.testing.assert_close(head.loss.centres.weight.detach(), before - 0.1 * 2.5, rtol=0, atol=1e-15)


def test_clipping_comes_after_averaging():
    head = make_head(FourLikeMe(), clip_norm=1.0)
    before = head.loss.centres.weight.detach().clone()
    pull(head)
    head.average(torch.zeros((), dtype=torch.float64))
    assert head.step(lr=1.0) == pytest.approx(2.5 * 12**0.5, rel=1e-12), "the norm before clipping is told"
    assert float((head.loss.centres.weight.detach() - before).norm()) == pytest.approx(1.0, rel=1e-5)


def test_clear_forgets_gradients():
    head = make_head()
    pull(head)
    head.clear()
    assert head.loss.centres.weight.grad is None


def test_state_comes_back_with_its_moments():
    head, twin = (make_head(name="adamw") for _ in range(2))
    for value in (1.0, -2.0):
        pull(head, value)
        head.step(lr=0.1)
    state = {group: {n: t.clone() for n, t in tensors.items()} for group, tensors in head.state().items()}
    assert state.keys() == {"centres", "centres_moments"}
    assert state["centres_moments"].keys() == {"weight:step", "weight:exp_avg", "weight:exp_avg_sq"}
    twin.load(state)
    for one in (head, twin):
        pull(one, 0.5)
        one.step(lr=0.1)
    assert torch.equal(head.loss.centres.weight, twin.loss.centres.weight)
    assert head.state()["centres_moments"]["weight:step"] == 3
