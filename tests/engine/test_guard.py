import math

import pytest
import torch

from hsadml_dist.data.batch import Batch
from hsadml_dist.engine.guard import MAX_SHOWN, Guard, NonFiniteStep, check_labels
from hsadml_dist.errors import DataError, NumericalError

SCRIPT = "engine/guard_ranks.py"
SIZE, BAD = 12, 3
WORLDS = (1, 2, 3)
VARIANTS = (
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
    """Assert bit-identical states."""
    assert {g: list(t) for g, t in one.items()} == {g: list(t) for g, t in other.items()}
    for group, tensors in one.items():
        for name, value in tensors.items():
            assert value.dtype == other[group][name].dtype
            assert value.numpy().tobytes() == other[group][name].numpy().tobytes(), f"{group} {name}"


@pytest.fixture(scope="module")
def skipped(ranks):
    """Answers of all ranks, by world size."""
    return {world: ranks(SCRIPT, world, "skip") for world in WORLDS}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world", WORLDS)
def test_step_with_bad_pixel_on_one_rank_changes_no_state(skipped, world, variant):
    for answer in skipped[world]:
        result = answer[variant]
        states = result["states"]
        assert_same(states[BAD - 1], states[BAD - 2])
        assert_same(states[-1], result["reference"])
        assert not torch.equal(states[BAD]["centres"]["weight"], states[BAD - 1]["centres"]["weight"]), (
            "the training must continue"
        )
        assert all(t.isfinite().all() for group in states[-1].values() for t in group.values())
        assert result["modes"] == {True}, "the network must stay in training mode"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world", WORLDS)
def test_bad_sample_is_named_equally_on_all_ranks(skipped, world, variant):
    for answer in skipped[world]:
        reports = answer[variant]["reports"]
        assert [report.skipped is not None for report in reports] == [False, False, True, False]
        assert not math.isfinite(reports[BAD - 1].loss + reports[BAD - 1].grad_norm)
        diagnosis = reports[BAD - 1].skipped
        assert diagnosis == skipped[world][0][variant]["reports"][BAD - 1].skipped
        assert diagnosis.suspects == ((f"{BAD}-{SIZE - 1}", "image"),)
        assert diagnosis.keys == tuple(f"{BAD}-{place}" for place in range(SIZE))
        assert diagnosis.weight is None


@pytest.fixture(scope="module", params=WORLDS)
def causes(request, ranks):
    """Diagnoses of steps that were not finite for one reason each, on all ranks."""
    return ranks(SCRIPT, request.param, "causes")


IMAGES = (("1-0", "image"), ("1-11", "image"))


@pytest.mark.parametrize(
    ("cause", "loss", "facts"),
    [
        ("two samples", math.nan, {"suspects": IMAGES}),
        ("weight", math.nan, {"weight": "neck.weight"}),
        ("buffer", math.nan, {"weight": "backbone.1.running_var"}),
        ("centre", math.nan, {"weight": "head.centres.weight"}),
        ("loss", math.inf, {"suspects": (), "weight": None}),
        ("norm", 4e29, {"suspects": (), "weight": None, "gradient": None}),
        ("gradient", None, {"suspects": (), "weight": None, "gradient": "neck.bias"}),
    ],
)
def test_diagnosis_names_the_cause(causes, cause, loss, facts):
    for answer in causes:
        diagnosis = answer[cause]["report"].skipped
        assert {name: getattr(diagnosis, name) for name in facts} == facts
        assert loss is None or diagnosis.loss == pytest.approx(loss, rel=0.1, nan_ok=True)
        assert (diagnosis.step, len(diagnosis.keys)) == (1, SIZE)
        assert diagnosis == causes[0][cause]["report"].skipped
        assert_same(answer[cause]["before"], answer[cause]["after"])


@pytest.fixture(scope="module", params=WORLDS)
def stops(request, ranks):
    """How trainings ended, on all ranks."""
    return ranks(SCRIPT, request.param, "stop")


def test_policy_stop_raises_on_all_ranks(stops):
    for answer in stops:
        done, (text, step), untouched = answer["immediately"]
        assert (done, step, untouched) == ([], BAD, True)
        for fact in ("step 3: ", "image of 3-11", "train.on_nonfinite", "'stop'", "'skip'"):
            assert fact in text
        assert "\n" not in text


def test_skip_limit_ends_the_training(stops):
    for answer in stops:
        done, (text, step), untouched = answer["limit"]
        assert (done, step, untouched) == ([2, 3, 5, 6], 7, True)
        assert "skipped steps before it in a row: 2" in text
        assert "train.skip_limit is 2" in text


def test_resume_amid_skipped_steps_gives_up_at_the_same_step(stops):
    for answer in stops:
        (first, nothing, _), (then, end, untouched) = answer["cut"]
        assert (first, nothing, then, untouched) == ([2, 3, 5, 6], None, [], True)
        assert end == answer["limit"][1]


def diagnosis(step=1, **changes):
    facts = {"loss": math.nan, "gradient": None, "weight": None, "suspects": (), "keys": ("a", "b")}
    return NonFiniteStep(step=step, **(facts | changes))


def test_applied_step_resets_the_skip_count():
    guard = Guard("skip", 1)
    for step in (1, 3, 5):
        guard.on_skipped(diagnosis(step))
        assert guard.consecutive_skips == 1
        guard.on_applied()
        assert guard.consecutive_skips == 0


def test_step_that_raises_is_not_counted_as_skipped():
    guard = Guard("skip", 1)
    guard.on_skipped(diagnosis(1))
    with pytest.raises(NumericalError, match=r"train\.skip_limit is 1") as caught:
        guard.on_skipped(diagnosis(2))
    assert (guard.consecutive_skips, caught.value.step) == (1, 2)


def test_message_of_diagnosis_names_the_facts():
    for changes, facts in (
        ({}, ["step 1: the loss is nan", "a, b"]),
        ({"loss": 2.5, "gradient": "neck.bias"}, ["the loss is 2.5", "gradient of 'neck.bias'"]),
        ({"loss": 2.5}, ["norm of the gradient"]),
        ({"weight": "neck.weight"}, ["'neck.weight' was not finite before this step"]),
        ({"suspects": (("b", "embedding"),)}, ["the embedding of b"]),
    ):
        assert all(fact in str(diagnosis(**changes)) for fact in facts)


def test_long_key_lists_are_shortened():
    many = tuple(f"k{i}" for i in range(MAX_SHOWN + 3))
    assert str(diagnosis(keys=many)).endswith(f"k{MAX_SHOWN - 1} and 3 more")
    assert f"the loss of k{MAX_SHOWN - 1} and 3 more" in str(diagnosis(suspects=tuple((key, "loss") for key in many)))
    assert "more" not in str(diagnosis(keys=many[:MAX_SHOWN]))


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
