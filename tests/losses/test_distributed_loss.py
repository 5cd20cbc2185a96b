import itertools
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hsadml_dist.distributed.comm import FakeComm, SoloComm
from hsadml_dist.losses.centres import Centres
from hsadml_dist.losses.distributed_loss import DistributedLoss, LossCompute
from hsadml_dist.losses.margins import LOSSES, build_margin
from tests.losses import slow_loop
from tests.losses.loss_cases import CASES, NORMS, STEP
from tests.losses.loss_matrix import LAYOUTS, MANY, RATE, SEED, SPREADS, WORLDS, batch, errors, jobs, rank_inputs

BOUND = 1e-10


@pytest.fixture(scope="module")
def computed(ranks, tmp_path_factory):
    """Each job with the answers of W real processes, by W."""
    found = {}
    for world in WORLDS:
        path = tmp_path_factory.mktemp("jobs") / "jobs.pt"
        torch.save(rank_inputs(world), path)
        answers = ranks("losses/distributed_loss_ranks.py", world, str(path))
        found[world] = list(zip(jobs(world), zip(*answers, strict=True), strict=True))
    return found


@pytest.fixture(scope="module")
def measured(computed):
    """Each job with the errors of its loss and gradients, by W."""
    return {world: [(job, errors(job, answers)) for job, answers in done] for world, done in computed.items()}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_on_ranks_match_slow_loop(measured, case, layout, world):
    rows = [(job, error) for job, error in measured[world] if (job.case, job.layout) == (case, layout)]
    spreads = {name for name, by_world in SPREADS.items() if world in by_world}
    assert {(job.spread, job.mode, job.accumulate) for job, _ in rows if job.rate == 1} == set(
        itertools.product(spreads, ("exact", "characteristic"), (1, 2))
    ), "variants are missing"
    for job, error in rows:
        assert max(error.values()) <= BOUND, f"{world} ranks, {job}: {error}"


def test_print_largest_errors(measured):
    """Visible with ``-s`` or ``-rP``."""
    lines = [f"{'largest relative errors':32}" + "".join(f"{f'W={world}':>10}" for world in WORLDS)]
    for case, layout in itertools.product(CASES, LAYOUTS):
        rows = [
            [max(error.values()) for job, error in measured[world] if (job.case, job.layout) == (case, layout)]
            for world in WORLDS
        ]
        lines.append(f"{case:22}{layout:10}" + "".join(f"{max(row):10.1e}" for row in rows))
    lines.append(f"of loss and gradients, {sum(map(len, measured.values()))} variants in all")
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert len(lines) == len(CASES) * len(LAYOUTS) + 2


def test_sampled_cases_include_undrawn_targets():
    """Otherwise the sampled variants above would not test undrawn targets."""
    drawn = {c for c in range(MANY) if slow_loop.is_drawn(c, rate=RATE, seed=SEED, step=STEP)}
    targets = set(batch(MANY)["label"].tolist())
    assert targets & drawn
    assert targets - drawn
    assert drawn - targets or targets == set(range(MANY))


@pytest.mark.parametrize("world", WORLDS)
def test_norm_statistics_follow_global_batch_in_every_variant(computed, world):
    seen = 0
    for job, answers in computed[world]:
        if job.case != "adaface":
            continue
        seen += 1
        data = batch(job.classes)
        norm = (data["x"] @ data["backbone"]).norm(dim=1)
        means = [0.99 * old + 0.01 * new for old, new in zip(NORMS, (norm.mean(), norm.std()), strict=True)]
        for answer in answers:
            torch.testing.assert_close(answer["norms"], torch.stack(means), rtol=1e-12, atol=0, msg=str(job))
            assert torch.equal(answer["norms"], answers[0]["norms"])
    assert seen >= 8


def make(name="cosface", *, classes=5, dim=6, comm=None, layout="replicated", compute=None):
    comm = comm or SoloComm()
    return DistributedLoss(Centres(classes, dim, seed=0), build_margin(name), comm, layout, compute)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_raised_to_fp32(name, half):
    loss, emb, label = make(name), draw(8, 6).to(half), torch.arange(8) % 5
    low, high = emb.clone().requires_grad_(), emb.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(low, label, step=1, count=8)
        value.backward()
    expected = loss(high, label, step=1, count=8)
    expected.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(low.grad, high.grad.to(half))


@pytest.mark.parametrize("name", LOSSES)
def test_fp64_embeddings_stay_fp64(name):
    loss = make(name).double()
    value = loss(draw(3, 6).double().requires_grad_(), torch.tensor([0, 1, 2]), step=1, count=3)
    value.backward()
    assert value.dtype == loss.centres.weight.grad.dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch_gives_zero_loss_and_gradients(name, layout):
    loss, emb = make(name, layout=layout), torch.empty(0, 6, requires_grad=True)
    value = loss(emb, torch.empty(0, dtype=torch.int64), step=1, count=4)
    value.backward()
    loss.end_step()
    assert float(value.detach()) == 0
    assert emb.grad.shape == (0, 6)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in loss.parameters())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"sphereface2"}))
def test_single_class_gives_zero_loss_and_gradients(name):
    loss, emb = make(name, classes=1).double(), draw(3, 6).double().requires_grad_()
    value = loss(emb, torch.zeros(3, dtype=torch.int64), step=1, count=3)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(emb.grad, torch.zeros_like(emb))
    assert torch.equal(loss.centres.weight.grad, torch.zeros(1, 6, dtype=torch.float64))


def test_local_share_averages_to_the_global_mean():
    """Three samples here, 12 in the step, 4 ranks: 4 / 12 times the sum of the losses."""
    emb, label = draw(3, 6), torch.tensor([0, 1, 2])
    alone = make()(emb, label, step=1, count=3)
    for count, part in ((12, 1), (24, 0.5)):
        torch.testing.assert_close(make(comm=FakeComm(0, 4))(emb, label, step=1, count=count), part * alone)


def test_annealing_depends_on_the_step_argument():
    loss = make("sphereface")
    early, late = (loss(draw(8, 6), torch.arange(8) % 5, step=step, count=8).detach() for step in (1, 2000))
    assert late > early + 0.01, "the margin and with it the loss must grow"


def test_norm_statistics_change_only_at_end_of_training_step():
    loss, emb, label = make("adaface"), draw(8, 6), torch.arange(8) % 5
    loss(emb, label, step=1, count=8)
    loss.end_step()
    assert float(loss.norms.mean) == 20
    loss(emb.requires_grad_(), label, step=1, count=8)
    assert float(loss.norms.mean) == 20
    loss.end_step()
    assert float(loss.norms.mean) < 20


class CountProducts(TorchDispatchMode):
    """Count matrix products."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return function(*args, **(kwargs or {}))


def count_products(loss, *, count):
    """Return the number of matrix products of a forward and backward pass: 3 if cosines are stored, else 4."""
    with CountProducts() as products:
        loss(draw(8, 6).requires_grad_(), torch.arange(8) % 5, step=1, count=count).backward()
    return products.count


FITS = 8 * 5 * 4 / 2**20
"""MiB of the cosines of 8 samples and 5 classes."""


@pytest.mark.parametrize(
    ("backward", "memory_mib", "stores"),
    [("store", 1e-9, True), ("stream", 1e9, False), ("auto", FITS, True), ("auto", FITS - 1e-9, False)],
)
def test_backward_auto_stores_cosines_that_fit(backward, memory_mib, stores):
    loss = make(compute=LossCompute(backward=backward, memory_mib=memory_mib))
    assert count_products(loss, count=8) == (3 if stores else 4)


def test_backward_auto_counts_samples_of_all_ranks_if_sharded():
    for layout, stores in (("replicated", True), ("sharded", False)):
        loss = make(comm=FakeComm(0, 4), layout=layout, compute=LossCompute(memory_mib=FITS))
        assert count_products(loss, count=32) == (3 if stores else 4)


@pytest.mark.parametrize("name", LOSSES)
def test_state_dict_has_bias_and_statistics_only_where_needed(name):
    extra = {"sphereface2": {"bias"}, "adaface": {"norms.mean", "norms.deviation"}}.get(name, set())
    assert make(name).state_dict().keys() == {"centres.weight"} | extra
