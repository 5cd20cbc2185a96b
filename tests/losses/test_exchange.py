import pytest
import torch

from hsadml_dist.losses.exchange import LocalExchange


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def told(request, ranks):
    """What each of W real processes was told."""
    return ranks("losses/exchange_ranks.py", request.param, "exchange")


def counts(world):
    return [(3 * rank + 2) % 4 for rank in range(world)]


def test_the_ranks_here_hold_uneven_numbers_of_samples():
    assert counts(4) == [2, 1, 0, 3]


def test_all_ranks_get_the_samples_of_all_in_the_order_of_the_ranks(told):
    embs = [
        100.0 * r + torch.arange(2.0 * n, dtype=torch.float64).reshape(n, 2) for r, n in enumerate(counts(len(told)))
    ]
    labels = [10 * r + torch.arange(n) for r, n in enumerate(counts(len(told)))]
    for answer in told:
        assert torch.equal(answer["uneven"]["emb"], torch.cat(embs))
        assert torch.equal(answer["uneven"]["label"], torch.cat(labels))


def test_totals_and_largest(told):
    for answer in told:
        assert answer["uneven"]["total"].tolist() == [float("1" * len(told))] * 3
        assert answer["uneven"]["largest"].tolist() == [len(told) - 1, 0, 7]


def test_a_ranks_own_samples_come_back_to_it(told):
    sizes = counts(len(told))
    for rank, answer in enumerate(told):
        mine = torch.arange(sum(sizes))[sum(sizes[:rank]) : sum(sizes[: rank + 1])]
        assert torch.equal(answer["uneven"]["own"], mine)
        expected = float("1" * len(told)) * (1 + mine[:, None]).double().expand(-1, 2)
        assert torch.equal(answer["uneven"]["own total"], expected)


def test_no_rank_has_a_sample(told):
    for answer in told:
        none = answer["none"]
        assert none["emb"].shape == none["own total"].shape == (0, 2)
        assert none["label"].shape == none["own"].shape == (0,)
        assert none["total"].tolist() == [float("1" * len(told))] * 3


def test_without_an_exchange_all_stays_as_it_is():
    exchange, emb_BD, label_B = LocalExchange(), torch.rand(3, 2), torch.arange(3)
    gathered = exchange.gather(emb_BD, label_B)
    assert gathered[0] is emb_BD
    assert gathered[1] is label_B
    for method in (exchange.total, exchange.largest, exchange.own, exchange.own_total):
        assert method(emb_BD) is emb_BD
