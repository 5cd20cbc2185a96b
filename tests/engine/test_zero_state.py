import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.engine.zero_state import FlatFragment, gather_full_tensors, squared_norm

WHOLE = {"a": torch.tensor([[1.0, -0.0, torch.nan], [3e-42, -torch.inf, 5.0]]), "b": torch.tensor([-0.0, 7.0])}
SHAPES = {name: tensor.shape for name, tensor in WHOLE.items()}


def pieces(rank):
    """Return a rank's pieces of a flat row of all eight elements, five on rank 0."""
    row = torch.cat([tensor.flatten() for tensor in WHOLE.values()])
    flat, spans = (
        (row[:5].clone(), {"a": (0, 5, 0)}) if rank == 0 else (row[5:].clone(), {"a": (5, 1, 0), "b": (0, 2, 1)})
    )
    return [
        FlatFragment(name=name, shape=SHAPES[name], start=start, count=count, flat=flat, offset=offset)
        for name, (start, count, offset) in spans.items()
    ]


def parts(rank):
    return {piece.name: (piece, piece.of(piece.flat)) for piece in pieces(rank)}


class Beside(SoloComm):
    """Rank 0 of two; knows what rank 1 adds to each sum."""

    def __init__(self, others):
        super().__init__()
        self._others = iter(others)

    def all_reduce_sum(self, tensor):
        return tensor.add_(next(self._others))


def bits_of_rank_1():
    for name, shape in SHAPES.items():
        bits = torch.zeros(shape.numel(), dtype=torch.int32)
        if name in parts(1):
            piece, values = parts(1)[name]
            bits[piece.start : piece.start + piece.count] = values.view(torch.int32)
        yield bits


def test_a_piece_is_a_view_of_its_flat_tensor_and_cuts_the_same_from_the_whole():
    for rank in (0, 1):
        for piece in pieces(rank):
            assert piece.of(piece.flat).data_ptr() == piece.flat[piece.offset :].data_ptr()
            cut = piece.cut(WHOLE[piece.name])
            assert cut.view(torch.int32).tolist() == piece.of(piece.flat).view(torch.int32).tolist()


def test_a_piece_of_a_channels_last_tensor_counts_its_elements_in_logical_order():
    whole = torch.arange(24.0).view(1, 2, 3, 4)
    piece = FlatFragment(name="w", shape=whole.shape, start=3, count=4, flat=torch.zeros(9), offset=2)
    assert piece.cut(whole.to(memory_format=torch.channels_last)).tolist() == [3, 4, 5, 6]


def test_whole_tensors_are_put_together_bit_for_bit():
    whole = gather_full_tensors(SHAPES, parts(0), Beside(bits_of_rank_1()))
    assert whole.keys() == WHOLE.keys()
    for name, tensor in WHOLE.items():
        assert whole[name].shape == tensor.shape
        assert whole[name].view(torch.int32).tolist() == tensor.view(torch.int32).tolist(), "also -0, nan and inf"


def test_who_does_not_want_the_result_takes_part_without_it():
    comm = Beside(bits_of_rank_1())
    assert gather_full_tensors(SHAPES, parts(0), comm, keep=False) == {}
    with pytest.raises(StopIteration):
        comm.all_reduce_sum(torch.zeros(1))


def test_the_norm_counts_each_element_once():
    class Second(SoloComm):
        def all_reduce_sum(self, tensor):
            return tensor + 16.0

    assert float(squared_norm([torch.tensor([1.0, 2.0]), torch.tensor([2.0])], Second())) == 25.0
    assert float(squared_norm([], Second())) == 16.0
