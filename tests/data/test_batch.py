import pytest
import torch

from hsadml_dist.data.batch import Batch


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_microbatches_partition_the_batch(count):
    batch = Batch(image=torch.arange(7.0).reshape(7, 1, 1, 1), label=torch.arange(7), keys=tuple("abcdefg"))
    parts = batch.microbatches(count)
    assert len(parts) == count
    assert torch.equal(torch.cat([part.image for part in parts]), batch.image)
    assert torch.equal(torch.cat([part.label for part in parts]), batch.label)
    assert tuple(key for part in parts for key in part.keys) == batch.keys
    sizes = [len(part.keys) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [len(part.image) for part in parts] == sizes
