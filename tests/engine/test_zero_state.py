import pytest
import torch

from hsadml_dist.distributed.comm import FakeComm
from hsadml_dist.engine.zero_state import FlatFragment, gather_full_tensors, squared_norm

WHOLE = {"a": torch.tensor([[1.0, -0.0, torch.nan], [3e-42, -torch.inf, 5.0]]), "b": torch.tensor([-0.0, 7.0])}
SHAPES = {name: tensor.shape for name, tensor in WHOLE.items()}


def fragments(rank):
    """Return the fragments of a rank; rank 0 holds five of eight elements."""
    row = torch.cat([tensor.flatten() for tensor in WHOLE.values()])
    flat, spans = (
        (row[:5].clone(), {"a": (0, 5, 0)}) if rank == 0 else (row[5:].clone(), {"a": (5, 1, 0), "b": (0, 2, 1)})
    )
    return [
        FlatFragment(name=name, shape=SHAPES[name], start=start, count=count, flat=flat, offset=offset)
        for name, (start, count, offset) in spans.items()
    ]


def parts(rank):
    return {fragment.name: (fragment, fragment.view_of(fragment.flat)) for fragment in fragments(rank)}


class RankZeroWithPeer(FakeComm):
    """Rank 0 of two; ``others`` are the summands of rank 1."""

    def __init__(self, others):
        super().__init__(0, 2)
        self.others = iter(others)

    def all_reduce_sum(self, tensor):
        return tensor.add_(next(self.others))


def bits_of_rank_1():
    for name, shape in SHAPES.items():
        bits = torch.zeros(shape.numel(), dtype=torch.int32)
        if name in parts(1):
            fragment, values = parts(1)[name]
            bits[fragment.start : fragment.start + fragment.count] = values.view(torch.int32)
        yield bits


def test_fragment_views_flat_tensor_and_slices_full_tensor():
    for rank in (0, 1):
        for fragment in fragments(rank):
            assert fragment.view_of(fragment.flat).data_ptr() == fragment.flat[fragment.offset :].data_ptr()
            cut = fragment.slice_of(WHOLE[fragment.name])
            assert cut.view(torch.int32).tolist() == fragment.view_of(fragment.flat).view(torch.int32).tolist()


def test_slice_of_channels_last_tensor_uses_logical_order():
    whole = torch.arange(24.0).view(1, 2, 3, 4)
    fragment = FlatFragment(name="w", shape=whole.shape, start=3, count=4, flat=torch.zeros(9), offset=2)
    assert fragment.slice_of(whole.to(memory_format=torch.channels_last)).tolist() == [3, 4, 5, 6]


def test_gather_full_tensors_is_bit_identical():
    whole = gather_full_tensors(SHAPES, parts(0), RankZeroWithPeer(bits_of_rank_1()))
    assert whole.keys() == WHOLE.keys()
    for name, tensor in WHOLE.items():
        assert whole[name].shape == tensor.shape
        assert whole[name].view(torch.int32).tolist() == tensor.view(torch.int32).tolist(), "including -0, NaN and Inf"


def test_gather_full_tensors_without_keep_still_takes_part():
    comm = RankZeroWithPeer(bits_of_rank_1())
    assert gather_full_tensors(SHAPES, parts(0), comm, keep=False) == {}
    with pytest.raises(StopIteration):
        comm.all_reduce_sum(torch.zeros(1))


def test_squared_norm_counts_each_element_once():
    class OneOfTwo(FakeComm):
        def all_reduce_sum(self, tensor):
            return tensor + 16.0

    assert float(squared_norm([torch.tensor([1.0, 2.0]), torch.tensor([2.0])], OneOfTwo(0, 2))) == 25.0
    assert float(squared_norm([], OneOfTwo(0, 2))) == 16.0
