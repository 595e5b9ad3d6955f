import numpy as np
import pytest
import torch
from torch import Tensor

from foveal.features import rough_filter
from foveal.features.candidates import Candidates
from foveal.features.fixed_point import bits_of_index, read_keys, top_keys
from foveal.features.neighbours import top_k
from foveal.features.rough_filter import filter_pays

BLOCKS = [(1, 409), (3, 61), (1000, 5000)]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _copies() -> Tensor:
    """Six rows, each some 400 times: far more of a neighbour than there are candidates."""
    return _random(6, 5)[torch.randint(6, (2503,), generator=torch.Generator().manual_seed(1))]


def _few_copies() -> Tensor:
    rows = _random(2503, 5)
    rows[[11, 700, 701, 2502]] = rows[5].clone()
    return rows


def _collapsed() -> Tensor:
    return torch.ones(2503, 5) + 1e-4 * _random(2503, 5)


def _nearly_equal() -> Tensor:
    """Directions far apart, with cosines to (1, 0, ...) that float32 cannot order."""
    across = torch.nn.functional.normalize(_random(2503, 4).double(), dim=1)
    along = 0.6 + 1e-7 * torch.rand(2503, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return torch.cat([along, 0.8 * across], dim=1)


def _with_zeros() -> Tensor:
    return _random(2503, 5) * (torch.arange(2503) % 3 == 0)[:, None]


DATABASES = [_copies, _few_copies, _collapsed, _nearly_equal, _with_zeros, lambda: _random(2503, 5)]


def _queries(database: Tensor) -> Tensor:
    """Rows, zeros, and one that is an axis."""
    return torch.cat([database[[5, 17, 2000]], torch.zeros(1, 5), torch.eye(5)[:1], _random(2, 5, seed=9)])


@pytest.mark.parametrize(("block_queries", "block_database"), BLOCKS)
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("make", DATABASES)
def test_equals_exact_scores_of_all_rows(make: object, k: int, block_queries: int, block_database: int) -> None:
    database = make()
    queries = _queries(database)
    assert filter_pays(len(database), k)
    similarities, indices = top_k(queries, database, k=k, block_queries=block_queries, block_database=block_database)
    bits = bits_of_index(len(database))
    expected = read_keys(top_keys(queries, [database], k, bits), bits)
    assert torch.equal(indices, expected[1])
    assert torch.equal(similarities, expected[0].float())


def test_equals_a_sort_in_float64() -> None:
    queries, database = _random(7, 5), _random(2503, 5, seed=1)
    q, d = queries.double().numpy(), database.double().numpy()
    cosines = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (d / np.linalg.norm(d, axis=1, keepdims=True)).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :4]
    similarities, indices = top_k(queries, database, k=4)
    np.testing.assert_array_equal(indices.numpy(), order)
    np.testing.assert_allclose(similarities.numpy(), np.take_along_axis(cosines, order, 1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("make", [_few_copies, _collapsed, lambda: _random(2503, 5)])
def test_the_filter_alone_answers_where_neighbours_can_be_told_apart(
    make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collapsed features among them: seen from their middle they are spread as any."""

    def never(*_: object) -> Tensor:
        raise AssertionError("searched again without the filter")

    monkeypatch.setattr(rough_filter, "top_keys", never)
    database = make()
    top_k(database[:50] + 0.3 * (database[50:100] - database[:50]), database, k=4)


def test_products_that_the_user_lets_be_coarse_are_not_trusted() -> None:
    kept = torch.get_float32_matmul_precision()
    assert filter_pays(10**6, 1)
    try:
        torch.set_float32_matmul_precision("medium")
        assert not filter_pays(10**6, 1)
    finally:
        torch.set_float32_matmul_precision(kept)


@pytest.mark.parametrize("block", [1, 7, 64, 1009])
def test_candidates_are_the_best_scores(block: int) -> None:
    scores = _random(5, 1009)
    scores[2] = scores[2].sort().values  # each block is better than all before
    pool = Candidates(5, 13, scores.device)
    for first in range(0, 1009, block):
        pool.take(scores[:, first : first + block], first)
    pool.merge()
    best = scores.topk(13, dim=1)
    assert torch.equal(pool.numbers.sort(dim=1).values, best.indices.sort(dim=1).values)
    assert torch.equal(pool.floor, best.values[:, -1])
    assert torch.equal(scores.gather(1, pool.numbers), pool.scores)
