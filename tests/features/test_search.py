import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.features import database, search
from foveal.features.database import Database
from foveal.features.neighbours import top_k
from foveal.features.search import Neighbours, rank_exactly, search_exact, without_self


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _equal(found: Neighbours, expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found.indices, expected[1])
    assert torch.equal(found.similarities, expected[0])


@pytest.fixture(params=[(64, 1), (64, 3000), (100_000, 2**18)], ids=["every block", "some blocks", "one block"])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows in a block, for features of width 5; the best are looked for after so many similarities."""
    block_rows, together = request.param
    monkeypatch.setattr(database, "BLOCK_BYTES", {"cpu": 4 * 5 * block_rows})
    monkeypatch.setattr(search, "_SCORES_TOGETHER", together)
    return block_rows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("k", [1, 7, 997])
@pytest.mark.filterwarnings("ignore:.*bf16")
def test_equals_the_sort_in_float64_whatever_the_blocks(block_rows: int, precision: str, k: int) -> None:
    queries, rows = 5 * _random(11, 5), 0.01 * _random(997, 5, seed=1)
    found = search_exact(queries, Database.of_array(rows), k=k, precision=precision)
    q, d = queries.double().numpy(), rows.double().numpy()
    cosines = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (d / np.linalg.norm(d, axis=1, keepdims=True)).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.indices.numpy(), order)
    np.testing.assert_allclose(found.similarities.numpy(), np.take_along_axis(cosines, order, 1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("at_a_time", [200, 10_000])
def test_queries_in_several_parts_find_the_same(
    block_rows: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_SCORES_AT_A_TIME", at_a_time)
    queries, rows = _random(23, 5), _random(401, 5, seed=1)
    _equal(search_exact(queries, Database.of_array(rows), k=3), top_k(queries, rows, k=3))


def test_many_copies_come_in_the_order_of_their_index(block_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    base = _random(3, 5)
    rows = base[torch.randint(3, (701,), generator=torch.Generator().manual_seed(1))]
    with caplog.at_level(logging.INFO):
        found = search_exact(base, Database.of_array(rows), k=9)
    assert found.indices.tolist() == [(rows == one).all(1).nonzero().flatten()[:9].tolist() for one in base]
    assert "3 of 3 queries have more rows of nearly equal similarity than fp32 can order" in caplog.text


def test_proof_fails_for_near_ties_and_holds_for_spread_rows(caplog: pytest.LogCaptureFixture) -> None:
    """Rows that float32 cosines cannot tell apart are still found in the right order."""
    queries, rows = torch.ones(2, 16), torch.ones(500, 16) + 1e-4 * _random(500, 16)
    with caplog.at_level(logging.INFO):
        _equal(search_exact(queries, Database.of_array(rows), k=5), top_k(queries, rows, k=5))
        assert "searching again" in caplog.text
        caplog.clear()
        spread = _random(500, 16)
        _equal(search_exact(queries, Database.of_array(spread), k=5), top_k(queries, spread, k=5))
        assert not caplog.text


def test_float16_map_on_the_disk_is_searched_as_its_float32(tmp_path: Path) -> None:
    rows = _random(311, 5).half().numpy()
    np.save(tmp_path / "rows.npy", rows)
    database = Database.of_array(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    expected = top_k(_random(2, 5, seed=1), torch.from_numpy(rows).float(), k=4)
    _equal(search_exact(_random(2, 5, seed=1), database, k=4), expected)
    _equal(search_exact(_random(2, 5, seed=1), database, k=4), expected)  # with the lengths known


def test_rows_and_queries_of_zeros_are_similar_to_nothing() -> None:
    rows = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    found = search_exact(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), Database.of_array(rows), k=3)
    assert found.indices.tolist() == [[2, 1, 0], [0, 1, 2]]
    assert found.similarities[1].tolist() == [0, 0, 0]


def test_a_database_of_one_row() -> None:
    found = search_exact(torch.ones(2, 3), Database.of_array(-torch.ones(1, 3)), k=1)
    assert found.indices.tolist() == [[0], [0]]
    torch.testing.assert_close(found.similarities, -torch.ones(2, 1))


@pytest.mark.parametrize(("k", "num_rows"), [(0, 3), (4, 3), (1, 0)])
def test_k_out_of_range_is_named(k: int, num_rows: int) -> None:
    with pytest.raises(FovealError, match=f"k={k} neighbours of a database of {num_rows} rows"):
        search_exact(torch.ones(2, 5), Database.of_array(torch.ones(num_rows, 5)), k=k)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30, 1e-30])
def test_a_row_that_float32_cannot_square_is_named(bad: float) -> None:
    rows = torch.eye(5)
    rows[3] = 0
    rows[3, 2] = bad
    with pytest.raises(FovealError, match="row 3 of the database holds NaN or infinity, or has length"):
        search_exact(torch.ones(2, 5), Database.of_array(rows), k=1)


def test_queries_that_do_not_fit_are_named() -> None:
    database = Database.of_array(torch.ones(3, 5))
    with pytest.raises(FovealError, match=r"queries \(2, 4\) in a database of width 5"):
        search_exact(torch.ones(2, 4), database, k=1)
    with pytest.raises(FovealError, match="at least one"):
        search_exact(torch.ones(0, 5), database, k=1)
    with pytest.raises(FovealError, match="query holds NaN"):
        search_exact(torch.full((1, 5), torch.nan), database, k=1)
    with pytest.raises(FovealError, match="precision 'fp8' is not known; choose fp32 or bf16"):
        search_exact(torch.ones(1, 5), database, k=1, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(FovealError, match="give \\(rows, width\\) of a float type"):
        Database.of_array(np.ones((3, 5), np.int8))


def test_a_database_that_shrank_is_noticed() -> None:
    rows = torch.eye(5)
    database = Database(num_rows=7, width=5, blocks=lambda size: iter(rows.split(size)), read=lambda i: rows[i])
    with pytest.raises(FovealError, match="gave 5 of 7 rows"):
        search_exact(torch.ones(1, 5), database, k=1)


def test_candidates_are_ordered_by_their_exact_similarity() -> None:
    queries, rows = _random(3, 5), _random(29, 5, seed=1)
    every = torch.arange(29).flip(0).repeat(3, 1)
    _equal(rank_exactly(queries, Database.of_array(rows), every, k=29), top_k(queries, rows, k=29))
    few = torch.tensor([[4, -1, 7], [-1, -1, 2], [1, 28, 0]])
    found = rank_exactly(queries, Database.of_array(rows), few, k=2)
    assert found.indices[1].tolist() == [2, -1]
    assert found.similarities[1, 1] == -torch.inf
    assert set(found.indices[0].tolist()) == {4, 7}


def test_a_row_is_left_out_of_its_own_neighbours() -> None:
    found = Neighbours(torch.tensor([[0.9, 0.8, 0.7]]).repeat(3, 1), torch.tensor([[5, 1, 2], [1, 2, 3], [4, 2, 1]]))
    others = without_self(found, torch.tensor([1, 7, 4]))
    assert others.indices.tolist() == [[5, 2], [1, 2], [2, 1]]
    assert others.similarities[0].tolist() == pytest.approx([0.9, 0.7])
