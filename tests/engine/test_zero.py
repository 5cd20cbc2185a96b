"""Compare the DeepSpeed engine with DistributedDataParallel from the same states; see ``zero_ranks.py``."""

import itertools
import json
import sys
from importlib.util import find_spec

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed")

SCRIPT = "engine/zero_ranks.py"
STAGES = ["zero 0", "zero 1", "zero 2", "zero 3", "offload 2"]
ALL = ",".join(["ddp", *STAGES])
VARIANTS = list(itertools.product(("replicated", "sharded"), (1, 4), (None, 0.1)))
CLOSE = 1e-6
STATES = 3


@pytest.fixture(scope="module")
def stepped(ranks):
    """Gradients, report and state after one step of two ranks, by (variant, engine, step of the saved state)."""
    return ranks(SCRIPT, 2, f"steps:{ALL}")


def relative(one, other):
    """Return the norm of the difference of two mappings, relative to the norm of the second."""
    assert one.keys() == other.keys()
    whole = torch.cat([other[name].flatten().double() for name in other])
    apart = torch.cat([one[name].flatten().double() - other[name].flatten().double() for name in other])
    return float(apart.norm() / whole.norm())


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def test_step_matches_ddp(stepped, variant, name):
    steps = [step for found, engine, step in stepped[0] if (found, engine) == (variant, name)]
    assert len(steps) == STATES
    for rank, step in itertools.product((0, 1), steps):
        found, expected = stepped[rank][variant, name, step], stepped[rank][variant, "ddp", step]
        assert relative(found["gradients"], expected["gradients"]) <= CLOSE
        assert found["report"].loss == pytest.approx(expected["report"].loss, rel=CLOSE)
        assert found["report"].grad_norm == pytest.approx(expected["report"].grad_norm, rel=CLOSE)
        for group in ("model", "centres"):
            pairs = found["state"][group], stepped[rank][variant, "ddp", step]["state"][group]
            for key, value in pairs[0].items():
                torch.testing.assert_close(value, pairs[1][key], rtol=0, atol=CLOSE)


def test_print_largest_differences_from_ddp(stepped, capsys):
    title, cases = "largest differences from DDP", f"of {len(VARIANTS)} variants x {STATES} states"
    lines = [f"{title:30}{'gradients':>12}{'weights':>12}   {cases}"]
    for name in STAGES:
        keys = [key for key in stepped[0] if key[1] == name]
        pairs = [(stepped[0][key], stepped[0][key[0], "ddp", key[2]]) for key in keys]
        gradients = max(relative(one["gradients"], other["gradients"]) for one, other in pairs)
        states = [(one["state"]["model"], other["state"]["model"]) for one, other in pairs]
        weights = max(float((one[key] - other[key]).abs().max()) for one, other in states for key in one)
        assert len(pairs) == STATES * len(VARIANTS) and max(gradients, weights) <= CLOSE
        lines.append(f"{name:30}{gradients:12.1e}{weights:12.1e}")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def test_clipping_changes_the_step(stepped):
    (unclipped, clipped), step = (("replicated", 1, None), ("replicated", 1, 0.1)), 4
    for name in ["ddp", *STAGES]:
        assert stepped[0][clipped, name, step]["report"].grad_norm > 0.1, "the gradient must exceed the limit"
        moments = [stepped[0][variant, name, step]["state"]["model_moments"] for variant in (unclipped, clipped)]
        first = [{key: value for key, value in one.items() if key.endswith(":exp_avg")} for one in moments]
        assert relative(*first) > 0.01


def test_only_rank_0_gets_partitioned_state(stepped):
    for name in ("zero 1", "zero 2", "zero 3"):
        first, second = (answer[VARIANTS[0], name, 4]["state"] for answer in stepped)
        assert first["model_moments"].keys() == stepped[0][VARIANTS[0], "ddp", 4]["state"]["model_moments"].keys()
        assert second["model_moments"] == {}


CHAIN = [("ddp", 2), ("zero 3", 1), ("zero 1", 4), ("offload 3", 2), ("zero 0", 1), ("zero 2", 3)]


@pytest.fixture(scope="module")
def handed_over(ranks, tmp_path_factory):
    """Answers of rank 0 in a chain of engines and world sizes, each resumed from the previous one."""
    folder, found = tmp_path_factory.mktemp("states"), []
    for place, (name, world) in enumerate(CHAIN):
        job = {
            "engine": name,
            "load": str(folder / f"{place - 1}.pt") if place else None,
            "save": str(folder / f"{place}.pt"),
            "first": 4 * place + 1,
            "last": 4 * place + 4,
        }
        found.append(ranks(SCRIPT, world, f"handover:{json.dumps(job)}")[0])
    return found


def test_state_loads_bit_identically_on_any_stage_and_world_size(handed_over):
    for before, after in itertools.pairwise(handed_over):
        assert before["state"].keys() == after["loaded"].keys()
        assert {"model", "model_moments", "model_ema", "model_ema_count", "centres"} <= before["state"].keys()
        for group, tensors in before["state"].items():
            assert tensors.keys() == after["loaded"][group].keys()
            for name, value in tensors.items():
                loaded = after["loaded"][group][name]
                assert (value.dtype, value.shape) == (loaded.dtype, loaded.shape)
                assert value.contiguous().numpy().tobytes() == loaded.contiguous().numpy().tobytes(), (group, name)


def test_chain_of_engines_matches_one_engine(handed_over, ranks):
    job = {"engine": "ddp", "load": None, "save": None, "first": 1, "last": 4 * len(CHAIN)}
    (alone,) = ranks(SCRIPT, 1, f"handover:{json.dumps(job)}")
    reports = [report for one in handed_over for report in one["reports"]]
    assert [report.loss for report in reports] == pytest.approx([report.loss for report in alone["reports"]], rel=1e-4)
    assert relative(handed_over[-1]["evaluated"], alone["evaluated"]) < 1e-4


def test_evaluation_model_has_the_averaged_weights(handed_over):
    for one in handed_over:
        for name, value in one["state"]["model_ema"].items():
            assert torch.equal(one["evaluated"][name], value)
            assert not torch.equal(one["evaluated"][name], one["state"]["model"][name])


@pytest.mark.parametrize("name", ["zero 0", "zero 1", "zero 2", "zero 3", "offload 2", "offload 3"])
def test_nonfinite_step_changes_no_state(ranks, name):
    for answer in ranks(SCRIPT, 2, f"nonfinite:{name}"):
        assert "the image of 3-1" in str(answer["diagnoses"][0])
        assert answer["head_skipped"], "a step with a non-finite head gradient must be skipped"
        assert answer["weight"] is None
        for before, after in (("before", "after"), ("expected", "state")):
            for group, tensors in answer[before].items():
                for key, value in tensors.items():
                    assert torch.equal(value, answer[after][group][key]), (group, key)


@pytest.mark.parametrize("world", [1, 3])
def test_losses_of_all_stages_stay_close_to_ddp(ranks, world, capsys):
    answer = ranks(SCRIPT, world, "courses:ddp,zero 0,zero 1,zero 2,zero 3")[0]
    expected = [report.loss for report in answer["ddp"]["reports"]]
    with capsys.disabled():
        for name, found in answer.items():
            losses = [report.loss for report in found["reports"]]
            apart = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
            sys.stdout.write(f"\nW={world} {name}: losses of 20 unclipped steps within {apart:.1e} of DDP's")
            assert apart < 1e-4
            assert len(set(losses)) == 20


def test_activation_checkpointing_under_stage_3_is_bit_identical(ranks):
    answer = ranks(SCRIPT, 2, "courses:zero 3,recompute 3")[0]
    assert answer["zero 3"]["reports"] == answer["recompute 3"]["reports"]
    assert relative(answer["recompute 3"]["state"]["model"], answer["zero 3"]["state"]["model"]) == 0


def test_bf16_losses_match_under_every_engine(ranks):
    answer = ranks(SCRIPT, 2, "bf16:ddp,zero 0,zero 2,zero 3")[0]
    for (name, precision), losses in answer.items():
        if precision == "bf16":
            assert losses == pytest.approx(answer["ddp", "bf16"], rel=2e-3), name
            apart = [abs(a - b) / b for a, b in zip(losses, answer[name, "fp32"], strict=True)]
            assert max(apart) > 1e-4, "identical losses: bf16 was not used"
