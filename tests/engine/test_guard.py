import math

import pytest
import torch

from hsadml_dist.data.batch import Batch
from hsadml_dist.engine.guard import MAX_SHOWN, Guard, NonFiniteStep, check_labels
from hsadml_dist.errors import DataError, NumericalError

SCRIPT = "engine/guard_ranks.py"
SIZE, BAD = 12, 3
WORLDS = (1, 2, 3)
WAYS = (
    "fp32",
    "bf16",
    "fp64",
    "accumulated",
    "sgd, not clipped",
    "adaface",
    "adaface, sharded, accumulated",
    "sphereface2 and energy, sharded",
    "batch norm and dropout",
)


def assert_same(one, other):
    """The same to the last bit."""
    assert {g: list(t) for g, t in one.items()} == {g: list(t) for g, t in other.items()}
    for group, tensors in one.items():
        for name, value in tensors.items():
            assert value.dtype == other[group][name].dtype
            assert value.numpy().tobytes() == other[group][name].numpy().tobytes(), f"{group} {name}"


@pytest.fixture(scope="module")
def skipped(ranks):
    """Answers of all ranks, by the number of ranks."""
    return {world: ranks(SCRIPT, world, "skip") for world in WORLDS}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", WORLDS)
def test_step_with_bad_pixel_on_one_rank_changes_no_state(skipped, world, way):
    for answer in skipped[world]:
        told = answer[way]
        states = told["states"]
        assert_same(states[BAD - 1], states[BAD - 2])
        assert_same(states[-1], told["obvious"])
        assert not torch.equal(states[BAD]["centres"]["weight"], states[BAD - 1]["centres"]["weight"]), "it goes on"
        assert all(t.isfinite().all() for group in states[-1].values() for t in group.values())
        assert told["modes"] == {True}, "the network is left in training mode"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", WORLDS)
def test_bad_sample_is_named_equally_on_all_ranks(skipped, world, way):
    for answer in skipped[world]:
        reports = answer[way]["reports"]
        assert [report.skipped is not None for report in reports] == [False, False, True, False]
        assert not math.isfinite(reports[BAD - 1].loss + reports[BAD - 1].grad_norm)
        finding = reports[BAD - 1].skipped
        assert finding == skipped[world][0][way]["reports"][BAD - 1].skipped
        assert finding.suspects == ((f"{BAD}-{SIZE - 1}", "image"),)
        assert finding.keys == tuple(f"{BAD}-{place}" for place in range(SIZE))
        assert finding.weight is None


@pytest.fixture(scope="module", params=WORLDS)
def causes(request, ranks):
    """What steps came to that were not finite for one reason each, on all ranks."""
    return ranks(SCRIPT, request.param, "causes")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("two samples", "step 1: the loss is nan; not finite by themselves: the image of 1-0, the image of 1-11"),
        ("weight", "step 1: the loss is nan; 'neck.weight' was not finite before this step, so no sample is to blame"),
        ("buffer", "'backbone.1.running_var' was not finite before this step"),
        ("centre", "'head.centres.weight' was not finite before this step"),
        (
            "loss",
            "step 1: the loss is inf; no single sample's image, embedding or loss is; the step's 12 samples:",
        ),
        ("norm", "e+29, but the norm of the gradient is beyond the largest number; no single sample's"),
        ("gradient", "but the gradient of 'neck.bias' is not finite; no single sample's image, embedding or loss is;"),
    ],
)
def test_diagnosis_names_the_cause(causes, cause, words):
    for answer in causes:
        told = answer[cause]
        assert words in str(told["report"].skipped)
        assert str(told["report"].skipped) == str(causes[0][cause]["report"].skipped)
        assert_same(told["before"], told["after"])


@pytest.fixture(scope="module", params=WORLDS)
def stops(request, ranks):
    """How trainings ended, on all ranks."""
    return ranks(SCRIPT, request.param, "stop")


def test_policy_stop_raises_on_all_ranks(stops):
    for answer in stops:
        done, (text, step), untouched = answer["at once"]
        assert (done, step, untouched) == ([], BAD, True)
        assert text == (
            "step 3: the loss is nan; not finite by themselves: the image of 3-11; the step changed nothing, "
            "and train.on_nonfinite is 'stop' ('skip' would go on without it)"
        )


def test_skip_limit_ends_the_training(stops):
    for answer in stops:
        done, (text, step), untouched = answer["limit"]
        assert (done, step, untouched) == ([2, 3, 5, 6], 7, True)
        assert text.endswith("; the 2 steps before it had to be skipped too, and train.skip_limit is 2")


def test_resume_amid_skipped_steps_gives_up_at_the_same_step(stops):
    for answer in stops:
        (first, nothing, _), (then, end, untouched) = answer["cut"]
        assert (first, nothing, then, untouched) == ([2, 3, 5, 6], None, [], True)
        assert end == answer["limit"][1]


def finding(step=1, **changes):
    facts = {"problem": "the loss is nan", "weight": None, "suspects": (), "keys": ("a", "b")}
    return NonFiniteStep(step=step, **(facts | changes))


def test_applied_step_resets_the_skip_count():
    guard = Guard("skip", 1)
    for step in (1, 3, 5):
        guard.on_skipped(finding(step))
        assert guard.consecutive_skips == 1
        guard.on_applied()
        assert guard.consecutive_skips == 0


def test_step_that_raises_is_not_counted_as_skipped():
    guard = Guard("skip", 1)
    guard.on_skipped(finding(1))
    with pytest.raises(NumericalError, match="the step before it had to be skipped too") as caught:
        guard.on_skipped(finding(2))
    assert (guard.consecutive_skips, caught.value.step) == (1, 2)


def test_long_key_lists_are_shortened():
    many = tuple(f"k{i}" for i in range(MAX_SHOWN + 3))
    assert str(finding(keys=many)).endswith(f"k{MAX_SHOWN - 1} and 3 more")
    assert f"the loss of k{MAX_SHOWN - 1} and 3 more" in str(finding(suspects=tuple((key, "loss") for key in many)))
    assert "more" not in str(finding(keys=many[:MAX_SHOWN]))


@pytest.mark.parametrize(("labels", "wrong"), [([0, 3, 1], 1), ([2, -1, 0], 1), ([9, 9, 2], 0)])
def test_check_labels_rejects_unknown_class_and_names_sample(labels, wrong):
    batch = Batch(image=torch.zeros(3, 1, 2, 2), label=torch.tensor(labels), keys=("a", "b", "c"))
    with pytest.raises(DataError) as caught:
        check_labels(batch, 3)
    assert str(caught.value) == f"sample {'abc'[wrong]}: label {labels[wrong]} is not one of the 3 classes 0 to 2"


@pytest.mark.parametrize("labels", [[0, 2, 1], []])
def test_check_labels_accepts_valid_and_empty_batches(labels):
    count = len(labels)
    label = torch.tensor(labels, dtype=torch.int64)
    check_labels(Batch(image=torch.zeros(count, 1, 2, 2), label=label, keys=("",) * count), 3)
