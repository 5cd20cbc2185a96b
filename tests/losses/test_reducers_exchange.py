import pytest
import torch

from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.losses.reducers import Exchange


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def results(request, ranks):
    """Results on each of W real processes."""
    return ranks("losses/exchange_ranks.py", request.param, "exchange")


def counts(world):
    return [(3 * rank + 2) % 4 for rank in range(world)]


def test_ranks_hold_uneven_numbers_of_samples():
    assert counts(4) == [2, 1, 0, 3]


def test_gather_returns_samples_in_rank_order(results):
    embs = [
        100.0 * r + torch.arange(2.0 * n, dtype=torch.float64).reshape(n, 2) for r, n in enumerate(counts(len(results)))
    ]
    labels = [10 * r + torch.arange(n) for r, n in enumerate(counts(len(results)))]
    for answer in results:
        assert torch.equal(answer["uneven"]["emb"], torch.cat(embs))
        assert torch.equal(answer["uneven"]["label"], torch.cat(labels))


def test_sum_and_max_over_ranks(results):
    for answer in results:
        assert answer["uneven"]["sum"].tolist() == [float("1" * len(results))] * 3
        assert answer["uneven"]["max"].tolist() == [len(results) - 1, 0, 7]


def test_select_own_and_reduce_own_return_local_samples(results):
    sizes = counts(len(results))
    for rank, answer in enumerate(results):
        own = torch.arange(sum(sizes))[sum(sizes[:rank]) : sum(sizes[: rank + 1])]
        assert torch.equal(answer["uneven"]["select own"], own)
        expected = float("1" * len(results)) * (1 + own[:, None]).double().expand(-1, 2)
        assert torch.equal(answer["uneven"]["reduce own"], expected)


def test_exchange_without_samples(results):
    for answer in results:
        none = answer["none"]
        assert none["emb"].shape == none["reduce own"].shape == (0, 2)
        assert none["label"].shape == none["select own"].shape == (0,)
        assert none["sum"].tolist() == [float("1" * len(results))] * 3


def test_exchange_of_one_rank_returns_its_arguments():
    exchange, emb_BD, label_B = Exchange(SoloComm()), torch.rand(3, 2), torch.arange(3)
    gathered = exchange.gather(emb_BD, label_B)
    assert gathered[0] is emb_BD
    assert gathered[1] is label_B
    for method in (exchange.sum, exchange.max, exchange.reduce_own):
        assert method(emb_BD) is emb_BD
    assert torch.equal(exchange.select_own(emb_BD), emb_BD)
