import pytest
import torch

from hsadml_dist.losses.centres import Centres, at_least_fp32, initial_rows, resolve_layout


def test_rows_depend_on_seed_and_class_only():
    rows = initial_rows(range(10), 6, seed=3)
    assert torch.equal(initial_rows(range(4, 7), 6, seed=3), rows[4:7])
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(initial_rows(range(10), 6, seed=3), rows)


def test_rows_of_other_seeds_and_classes_differ():
    rows = torch.cat([initial_rows(range(20), 6, seed=seed) for seed in (0, 1, 2, 2**40)])
    assert len({tuple(row.tolist()) for row in rows}) == 80
    cosines = rows @ rows.t() - torch.eye(80)
    assert cosines.abs().max() < 0.999


def test_rows_are_unit_fp32_and_the_callers_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rows = initial_rows(range(7), 5, seed=0)
    assert torch.equal(torch.rand(3), expected)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))
    assert rows.dtype == torch.float32


def test_rows_point_everywhere():
    rows = initial_rows(range(2000), 8, seed=0)
    # Means of 2000 components of variance 1/8: standard deviation 0.0079.
    assert rows.mean(dim=0).abs().max() < 5 * 0.0079


def test_no_classes_no_rows():
    assert initial_rows(range(0), 4, seed=0).shape == (0, 4)


def test_centres_hold_all_classes_or_those_that_are_named():
    whole, part, nothing = Centres(7, 4, seed=2), Centres(7, 4, seed=2, rows=range(2, 5)), Centres(7, 4, 2, range(3, 3))
    assert (whole.rows, part.rows, nothing.rows) == (range(7), range(2, 5), range(3, 3))
    assert whole.classes == part.classes == nothing.classes == 7
    assert torch.equal(whole.weight, initial_rows(range(7), 4, seed=2))
    assert torch.equal(part.weight, whole.weight[2:5])
    assert nothing.weight.shape == (0, 4)
    assert [name for name, _ in part.named_parameters()] == ["weight"]


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_a_layout_that_is_asked_for_is_taken(layout):
    for classes, world in ((3, 1), (3, 4), (10**6, 4)):
        assert resolve_layout(layout, classes=classes, global_batch=8, world_size=world) == layout


@pytest.mark.parametrize(
    ("classes", "world", "layout"),
    [(3, 4, "replicated"), (16, 4, "replicated"), (17, 2, "sharded"), (10**6, 64, "sharded"), (10**6, 1, "replicated")],
)
def test_auto_takes_the_layout_of_the_smaller_messages(classes, world, layout):
    assert resolve_layout("auto", classes=classes, global_batch=8, world_size=world) == layout


def test_only_halves_are_raised():
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert [at_least_fp32(torch.ones(1, dtype=kind)).dtype for kind in kinds] == [torch.float32] * 3 + [torch.float64]
