import pytest
import torch

from hsadml_dist.losses.centres import ReplicatedCentres, at_least_fp32, initial_rows


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_centres_are_unit_and_at_least_fp32(dtype):
    centres = ReplicatedCentres(4, 6, seed=0).to(dtype)
    with torch.no_grad():
        centres.weight.mul_(7)
    unit = centres()
    assert unit.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4, dtype=unit.dtype))


def test_the_gradient_only_turns_a_centre():
    centres = ReplicatedCentres(4, 6, seed=0).double()
    (centres() * torch.randn(4, 6, dtype=torch.float64)).sum().backward()
    along = (centres.weight.grad * centres.weight).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert centres.weight.grad.abs().max() > 0.1


def test_only_halves_are_raised():
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert [at_least_fp32(torch.ones(1, dtype=kind)).dtype for kind in kinds] == [torch.float32] * 3 + [torch.float64]
