import copy
import io
import itertools
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import nn

from hsadml_dist import losses
from hsadml_dist.distributed.comm import FakeComm
from hsadml_dist.errors import ConfigError, UsageError
from hsadml_dist.loss_rules import LossName
from hsadml_dist.losses import AdaFace, ArcFace, CosFace, NormFace, SphereFace, SphereFace2, modules
from hsadml_dist.losses.distributed_loss import LossCompute
from hsadml_dist.losses.margins import LOSSES, MarginSettings
from hsadml_dist.losses.modules import MarginLossModule, exclude_sharded_centres
from tests.losses.loss_cases import CASES, NORMS, STEP
from tests.losses.loss_matrix import CLASSES, LAYOUTS, SEED, SPREADS, WORLDS, batch, expected

PLACES = ("inside", "outside")
BOUND = 1e-12


def jobs(world):
    spreads = {name: by_world[world] for name, by_world in SPREADS.items() if world in by_world and name != "C < W"}
    return [
        SimpleNamespace(case=case, layout=layout, place=place, shares=shares, settings=CASES[case].settings("exact"))
        for case, layout, place, shares in itertools.product(CASES, LAYOUTS, PLACES, spreads.values())
    ]


@pytest.fixture(scope="module", params=WORLDS)
def computed(request, ranks, tmp_path_factory):
    """Each job with the answers of W real processes."""
    path = tmp_path_factory.mktemp("jobs") / "jobs.pt"
    inputs = {"jobs": jobs(request.param), "classes": CLASSES, "step": STEP, "seed": SEED, "norms": NORMS}
    torch.save(inputs | dict(batch(CLASSES)), path)
    answers = ranks("losses/modules_ranks.py", request.param, str(path))
    assert [answer["initialised"] for answer in answers] == [request.param > 1] * request.param
    return list(zip(jobs(request.param), zip(*(answer["answers"] for answer in answers), strict=True), strict=True))


def error(found, reference):
    return float((found - reference).norm() / reference.norm())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_module_on_ranks_has_gradients_of_one_rank_on_the_whole_batch(computed, case, layout, place):
    found = [(job, answers) for job, answers in computed if (job.case, job.layout, job.place) == (case, layout, place)]
    assert found
    reference = expected(case, "exact", CLASSES, 1.0)
    for job, answers in found:
        mean = torch.stack([answer["loss"] for answer in answers]).mean()
        assert error(mean, reference["loss"]) <= BOUND, job
        for name in reference.keys() - {"loss"}:
            if name == "centres" and layout == "sharded":
                rows = torch.cat([answer["centres"] for answer in answers])
                assert error(rows, reference["centres"]) <= BOUND, job
            else:
                assert all(error(answer[name], reference[name]) <= BOUND for answer in answers), (job, name)
        assert all(int(answer["step"]) == STEP for answer in answers)
        assert all(torch.equal(answer["all centres"], answers[0]["all centres"]) for answer in answers)
        assert answers[0]["all centres"].shape[0] == CLASSES


def test_there_is_a_module_for_each_loss_name():
    exported = {name: getattr(losses, name) for name in losses.__all__ if name != "exclude_sharded_centres"}
    assert {kind.name for kind in exported.values()} == set(get_args(LossName)) == set(LOSSES)
    assert set(exported.values()) == set(MarginLossModule.__subclasses__())


def test_losses_package_does_not_import_torch():
    code = "import sys, hsadml_dist.losses as losses; print('torch' in sys.modules, 'ArcFace' in dir(losses))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="NoFace"):
        _ = losses.NoFace


def inputs(size=6, dim=4, classes=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, dim, generator=generator).requires_grad_(), torch.arange(size) % classes


@pytest.mark.parametrize("kind", [NormFace, SphereFace, CosFace, ArcFace, SphereFace2, AdaFace])
def test_module_trains_with_an_ordinary_optimizer(kind):
    loss, (emb, label) = kind(num_classes=3, embedding_dim=4, scale=8.0), inputs()
    points = nn.Parameter(emb.detach())
    optimizer = torch.optim.SGD([points, *loss.parameters()], lr=0.1)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        values.append(loss(points, label))
        values[-1].backward()
        optimizer.step()
    assert float(values[-1].detach()) < 0.8 * float(values[0].detach())


def test_step_count_is_saved_and_counts_training_steps_only():
    loss, (emb, label) = SphereFace(3, 4), inputs()
    loss(emb, label)
    loss.eval()(emb, label)
    with torch.no_grad():
        loss.train()(emb, label)
    assert int(loss.state_dict()["step"]) == 1
    late = SphereFace(3, 4)
    late.load_state_dict(loss.state_dict() | {"step": torch.tensor(10_000)})
    assert late(emb, label) > loss(emb, label), "the annealed margin grows with the step"


def test_norm_statistics_change_in_training_only():
    loss, (emb, label) = AdaFace(3, 4), inputs()
    loss.eval()(emb, label)
    assert float(loss.loss.norms.mean) == 20
    loss.train()(emb, label)
    assert float(loss.loss.norms.mean) < 20


def test_module_can_be_copied_and_pickled_after_a_step():
    loss, (emb, label) = ArcFace(3, 4), inputs()
    expected_value = loss(emb, label)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    for twin in (copy.deepcopy(loss), torch.load(file, weights_only=False)):
        assert torch.equal(twin(emb, label), expected_value)


@pytest.mark.parametrize(
    ("emb_shape", "labels", "facts"),
    [
        ((2, 5), [0, 1], ["(2, 5)", "(B, 4)"]),
        ((2, 4), [0, 1, 2], ["(2, 4)", "(3,)"]),
        ((2, 4), [0, 3], ["0 to 3", "allowed: 0 to 2"]),
        ((2, 4), [-1, 1], ["-1 to 1", "allowed: 0 to 2"]),
    ],
)
def test_invalid_inputs_are_rejected(emb_shape, labels, facts):
    with pytest.raises(UsageError) as caught:
        ArcFace(3, 4)(torch.zeros(emb_shape), torch.tensor(labels))
    assert str(caught.value).startswith("ArcFace: ")
    assert all(fact in str(caught.value) for fact in facts)


def test_settings_reach_the_loss_and_invalid_ones_are_rejected():
    emb, label = inputs()
    values = {
        CosFace(3, 4, **options)(emb, label).item()
        for options in ({}, {"margin": 0.1}, {"scale": 5.0}, {"settings": MarginSettings(margin=0.2, scale=5.0)})
    }
    assert len(values) == 4
    with pytest.raises(ConfigError, match="margin"):
        ArcFace(3, 4, margin=-1.0)


def test_exclude_sharded_centres_lists_only_sharded_parameters():
    model = nn.Sequential(nn.Linear(2, 2), ArcFace(3, 4, layout="sharded"), ArcFace(3, 4))
    assert exclude_sharded_centres(model) == ["1.loss.centres.weight"]
    assert exclude_sharded_centres(ArcFace(3, 4, layout="sharded")) == ["loss.centres.weight"]


def test_sharded_module_rejects_a_later_change_of_world_size(monkeypatch):
    loss, (emb, label) = ArcFace(3, 4, layout="sharded"), inputs()
    monkeypatch.setattr(modules, "comm_from_process_group", lambda group, device: FakeComm(0, 2))
    with pytest.raises(UsageError, match="created for 1 ranks, called by 2"):
        loss(emb, label)
    assert ArcFace(3, 4, layout="sharded").loss.centres.rows == FakeComm(0, 2).topology.rank_range(3)


def test_sample_rate_that_draws_no_class_is_refused():
    ArcFace(num_classes=4, embedding_dim=2, compute=LossCompute(sample_rate=0.25))
    with pytest.raises(ConfigError) as caught:
        ArcFace(num_classes=4, embedding_dim=2, compute=LossCompute(sample_rate=0.2))
    [fault] = caught.value.faults
    assert fault.key == "loss.sample_rate" and "0.2 of 4 classes" in fault.problem and "0.25 to 1" in fault.problem
