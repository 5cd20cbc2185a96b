import hashlib

import pytest
import safetensors.torch
import torch

from hsadml_dist.checkpoint.files import DTYPES, PIECE_BYTES, write_bytes, write_tensors


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


STATES = {
    "nothing": {},
    "every dtype": {f"t.{dtype}": (40 * drawn(3, 5)).to(dtype) for dtype in DTYPES},
    "names in another order than types": {"z": drawn(2).double(), "a": drawn(3), "m": drawn(1).bfloat16()},
    "scalars and empty ones": {"step": torch.tensor(7.0), "none": drawn(0, 4), "count": torch.tensor(3)},
    "a name beyond ASCII": {'grün "x"': drawn(2)},
    "larger than a piece": {"big": drawn(PIECE_BYTES // 4 + 3), "small": drawn(5)},
}


@pytest.mark.parametrize("tensors", STATES.values(), ids=STATES)
def test_the_file_is_that_of_the_safetensors_library_bit_for_bit(tensors, tmp_path):
    entry = write_tensors(tmp_path / "ours", tensors)
    ours = (tmp_path / "ours").read_bytes()
    assert ours == safetensors.torch.save(tensors)
    assert entry == {"bytes": len(ours), "sha256": hashlib.sha256(ours).hexdigest()}


def test_memory_in_another_order_than_the_indices_is_put_in_order(tmp_path):
    tensors = {
        "channels last": drawn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "transposed": drawn(4, 3).t(),
        "part": drawn(4, 6)[:, 1:3],
        "expanded": drawn(1, 3).expand(4, 3),
        "half": drawn(4, 3).bfloat16().t(),
        "trained": torch.nn.Parameter(drawn(2, 2)),
    }
    write_tensors(tmp_path / "ours", tensors)
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    assert (tmp_path / "ours").read_bytes() == safetensors.torch.save(plain)


def test_bytes_are_written_with_their_size_and_hash(tmp_path):
    entry = write_bytes(tmp_path / "file", b"text")
    assert (tmp_path / "file").read_bytes() == b"text"
    assert entry == {"bytes": 4, "sha256": hashlib.sha256(b"text").hexdigest()}
