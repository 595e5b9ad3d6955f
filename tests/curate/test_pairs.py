from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.curate import pairs
from foveal.curate.pairs import BestPairs, one_thread_each, search_all
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError


def saved(folder: Path, rows: np.ndarray, name: str = "rows") -> Vectors:
    np.save(folder / f"{name}.npy", rows.astype(np.float32))
    return Vectors(folder / f"{name}.npy")


def crowded(num_rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Return rows of which many lie around a similarity of 0.6 to many others."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((5, width))
    return centres[generator.integers(0, 5, num_rows)] + 0.8 * generator.standard_normal((num_rows, width))


def by_hand(left: np.ndarray, right: np.ndarray, similarity: float, k: int, *, same: bool) -> list[tuple[int, int]]:
    left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right))
    cosines = left @ right.T
    if same:
        np.fill_diagonal(cosines, -2)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return [(row, int(other)) for row in range(len(left)) for other in order[row] if cosines[row, other] >= similarity]


@pytest.mark.parametrize("k", [1, 3, 300])
@pytest.mark.parametrize(("tile", "dense"), [(1024, 1 / 64), (64, 1 / 64), (64, 0.0), (64, 1.0)])
def test_pairs_are_those_of_float64_whatever_the_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, tile: int, dense: float
) -> None:
    monkeypatch.setattr(pairs, "TILE", tile)
    monkeypatch.setattr(pairs, "_BLOCK_ROWS", 2 * tile)
    monkeypatch.setattr(pairs, "_DENSE", dense)
    rows = crowded(203, 11)
    vectors = saved(tmp_path, rows)
    everything = np.arange(203)
    found = search_all(vectors, everything, vectors, everything, similarity=0.6, k=k)
    wanted = by_hand(rows, rows, 0.6, k, same=True)
    assert list(zip(found["left"].tolist(), found["right"].tolist(), strict=True)) == wanted
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    exact = (unit[found["left"]] * unit[found["right"]]).sum(axis=1)
    np.testing.assert_allclose(found["similarity"], exact, atol=1e-6)  # the file holds float32


def test_some_rows_are_compared_with_some_of_others(tmp_path: Path) -> None:
    pool, references = crowded(50, 7), crowded(30, 7, seed=1)
    asked, answering = np.array([3, 7, 31, 49]), np.arange(0, 30, 2)
    found = search_all(
        saved(tmp_path, pool), asked, saved(tmp_path, references, "other"), answering, similarity=0.3, k=2
    )
    wanted = by_hand(pool[asked], references[answering], 0.3, 2, same=False)
    assert len(wanted) > 4
    got = list(zip(found["left"].tolist(), found["right"].tolist(), strict=True))
    assert got == [(int(asked[row]), int(answering[other])) for row, other in wanted]


def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_BLOCK_ROWS", 16)
    vectors, everything, found = saved(tmp_path, crowded(150, 37)), np.arange(150), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(search_all(vectors, everything, vectors, everything, similarity=0.5, k=4))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert all((found[0][name] == found[1][name]).all() for name in found[0])


def test_threads_compute_alone() -> None:
    with one_thread_each() as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}


def test_merging_early_keeps_the_best(tmp_path: Path) -> None:
    vectors = saved(tmp_path, crowded(60, 5))
    everything, found = np.arange(60), []
    for max_pairs in (1, 10**6):
        best = BestPairs(vectors, vectors, similarity=0.2, k=3, max_pairs=max_pairs)
        for right in np.array_split(everything, 7):
            best.add_all(everything, right)
        found.append(best.end())
    assert len(found[0]["left"]) > 100
    assert all((found[0][name] == found[1][name]).all() for name in found[0])


def test_too_low_a_similarity_and_too_little_memory_are_refused(tmp_path: Path) -> None:
    vectors, some = saved(tmp_path, crowded(20, 5)), np.arange(20)
    with pytest.raises(FovealError, match=r"a similarity of 1e-09 is too low"):
        search_all(vectors, some, vectors, some, similarity=1e-9, k=1)
    with pytest.raises(FovealError, match="20 rows of width 5 at a time need"):
        search_all(vectors, some, vectors, some, similarity=0.5, k=1, memory_bytes=100)
