import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.curate import dedup, pairs_lists
from foveal.curate.dedup import DedupSettings, run_dedup
from foveal.curate.stage import Stage, read_stage
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError

LISTS = DedupSettings(search="lists", shard_size=150)


def clustered(num_rows: int = 600, width: int = 19) -> np.ndarray:
    """Return clusters of rows, apart from each other, the last third copies of some of the others at 0.7 and more."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((12, width))
    rows = centres[generator.integers(0, 12, num_rows)] + 0.9 * generator.standard_normal((num_rows, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    originals = num_rows - num_rows // 3
    noise = generator.standard_normal((num_rows - originals, width)) / np.sqrt(width)
    share = generator.uniform(0, 0.9, (num_rows - originals, 1))
    rows[originals:] = rows[generator.integers(0, originals, num_rows - originals)] + share * noise
    return rows


def edges(stage: Stage) -> set[tuple[int, int]]:
    """Return all edges of a stage, the lower row first."""
    found: set[tuple[int, int]] = set()
    for path in sorted((stage.folder / "shards/pairs").iterdir()):
        arrays = stage.load("pairs", int(path.stem))
        found |= {(min(p), max(p)) for p in zip(arrays["left"].tolist(), arrays["right"].tolist(), strict=True)}
    return found


@pytest.fixture
def vectors(tmp_path: Path) -> Vectors:
    np.save(tmp_path / "rows.npy", clustered().astype(np.float16))
    return Vectors(tmp_path / "rows.npy")


def test_lists_find_the_recall_that_they_state_and_no_wrong_pair(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_lists, "_num_to_read", lambda needed, _: int(np.quantile(needed, 0.75)))
    exact = edges(run_dedup(vectors, out=tmp_path / "exact", settings=DedupSettings(search="exact")))
    settings = DedupSettings(search="lists", shard_size=150, min_recall=0.5)
    stage = run_dedup(vectors, out=tmp_path / "lists", settings=settings)
    found = edges(stage)
    assert found < exact
    assert stage.summary is not None
    search = stage.summary["search"]
    assert search["num_lists_read"] < search["num_lists"] == 37
    drawn = {row for row in range(600) if row % 2}  # all rows are drawn; the odd ones measure
    directed = [(left, right) for a, b in exact for left, right in ((a, b), (b, a)) if left in drawn]
    share = np.mean([(min(pair), max(pair)) in found for pair in directed])
    assert search["num_pairs_measured"] == len(directed)
    assert search["recall"] == pytest.approx(share)
    assert 0.5 < share < 1
    assert not (stage.folder / "shards/lists").exists()


def test_reading_all_lists_finds_all_pairs(vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_lists, "_num_to_read", lambda *_: 1000)
    found = [edges(run_dedup(vectors, out=tmp_path / "lists", settings=LISTS))]
    found.append(edges(run_dedup(vectors, out=tmp_path / "exact", settings=DedupSettings(search="exact"))))
    assert found[0] == found[1]


def test_a_recall_below_the_least_is_refused_before_the_search(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_lists, "_num_to_read", lambda *_: 1)
    with pytest.raises(FovealError, match=r"finds 0\.\d+ of \d+ true pairs .* below min_recall=0\.99; search exactly"):
        run_dedup(vectors, out=tmp_path / "out", settings=LISTS)
    assert not (tmp_path / "out/shards/pairs").exists()


def test_an_interrupted_search_goes_on_to_the_same_bytes(vectors: Vectors, tmp_path: Path) -> None:
    def run() -> dict[str, bytes]:
        run_dedup(vectors, out=tmp_path / "out", settings=LISTS)
        files = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    before = run()
    (tmp_path / "out/summary.json").unlink()
    (tmp_path / "out/shards/pairs/00001.safetensors").unlink()
    shutil.rmtree(tmp_path / "out/shards/homes")
    shutil.rmtree(tmp_path / "out/shards/centres")
    assert run() == before


def test_any_number_of_threads_gives_the_same_bytes(vectors: Vectors, tmp_path: Path) -> None:
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            run_dedup(vectors, out=tmp_path / str(threads), settings=LISTS)
        finally:
            torch.set_num_threads(before)
        files = sorted(path for path in (tmp_path / str(threads)).rglob("*") if path.is_file())
        found.append([path.read_bytes() for path in files])
    assert len(found[0]) > 10
    assert found[0] == found[1]


def test_a_crowd_of_nearly_equal_rows_is_searched_with_the_recall_foreseen(tmp_path: Path) -> None:
    # Each row has more neighbours than it keeps, and centres differ by less than bf16 can tell.
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((1, 19)) + 0.01 * generator.standard_normal((600, 19))
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    settings = DedupSettings(search="lists", neighbours=8)
    stage = run_dedup(Vectors(tmp_path / "rows.npy"), out=tmp_path / "out", settings=settings)
    assert stage.summary is not None
    assert stage.summary["num_kept"] == 1
    assert stage.summary["search"]["recall"] >= 0.99
    assert stage.summary["search"]["num_pairs_measured"] == 300 * 8
    assert stage.summary["search"]["num_lists_read"] < stage.summary["search"]["num_lists"]


def test_damaged_lists_are_named(vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FovealError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(pairs_lists, "search_lists", fail)
        with pytest.raises(FovealError, match="interrupted"):
            run_dedup(vectors, out=tmp_path / "out", settings=LISTS)
    path = read_stage(tmp_path / "out").path("lists", 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FovealError, match=r"lists/00001\.safetensors is damaged"):
        run_dedup(vectors, out=tmp_path / "out", settings=LISTS)


@pytest.mark.parametrize("kind", ["few", "equal", "zeros", "nothing alike"])
def test_vectors_without_lists_or_pairs_are_searched_too(tmp_path: Path, kind: str) -> None:
    rows = {
        "few": np.repeat(np.eye(5), 2, axis=0) + 1e-3 * np.arange(10)[:, None],
        "equal": np.ones((300, 5)),
        "zeros": np.zeros((300, 5)),
        "nothing alike": np.eye(100),
    }[kind]
    np.save(tmp_path / "rows.npy", rows)
    stage = run_dedup(Vectors(tmp_path / "rows.npy"), out=tmp_path / "out", settings=LISTS)
    assert stage.summary is not None
    assert stage.summary["num_kept"] == {"few": 5, "equal": 1, "zeros": 300, "nothing alike": 100}[kind]
    assert stage.summary["search"].get("recall") is None


def test_the_search_follows_the_number_of_rows(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for limit in (600, 599):
        monkeypatch.setattr(dedup, "_EXACT_UP_TO", limit)
        stage = run_dedup(vectors, out=tmp_path / str(limit))
        assert stage.summary is not None
        found.append(stage.summary["search"]["method"])
    assert found == ["exact", "lists"]


@pytest.mark.parametrize(
    ("num_pairs", "read"), [(0, 8), (50, 100), (100, 200), (800, 900), (2000, 1994), (20_000, 19_900)]
)
def test_lists_read_leave_room_for_chance(num_pairs: int, read: int) -> None:
    # 2,000 pairs: 0.99 and three standard errors of 0.0022; 800 pairs say nothing of the last 1 %
    needed = np.random.default_rng(0).permutation(np.arange(1, num_pairs + 1))
    assert pairs_lists._num_to_read(needed, 0.99) == pytest.approx(read, abs=2)
