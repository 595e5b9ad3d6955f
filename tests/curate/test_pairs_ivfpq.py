import sys
from pathlib import Path

import numpy as np
import pytest

from foveal.curate.dedup import DedupSettings, run_dedup
from foveal.curate.stage import Stage
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError

pytest.importorskip("faiss")
INDEX = DedupSettings(search="ivfpq", shard_size=700, similarity=0.8)


def edges(stage: Stage) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for path in sorted((stage.folder / "shards/pairs").iterdir()):
        arrays = stage.load("pairs", int(path.stem))
        found |= {(min(p), max(p)) for p in zip(arrays["left"].tolist(), arrays["right"].tolist(), strict=True)}
    return found


@pytest.fixture
def vectors(tmp_path: Path) -> Vectors:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((1500, 16))
    rows[1000:] = rows[generator.integers(0, 1000, 500)] + 0.4 * generator.standard_normal((500, 16))
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    return Vectors(tmp_path / "rows.npy")


def test_an_index_finds_the_recall_that_it_states_and_no_wrong_pair(vectors: Vectors, tmp_path: Path) -> None:
    exact = edges(run_dedup(vectors, out=tmp_path / "exact", settings=DedupSettings(search="exact", similarity=0.8)))
    stage = run_dedup(vectors, out=tmp_path / "index", settings=INDEX)
    found = edges(stage)
    assert len(exact) > 300
    assert found <= exact
    assert stage.summary is not None
    search = stage.summary["search"]
    directed = [(left, right) for a, b in exact for left, right in ((a, b), (b, a)) if left % 2]  # all rows are drawn
    assert search["method"] == "ivfpq"
    assert search["num_pairs_measured"] == len(directed)
    assert search["recall"] == pytest.approx(np.mean([(min(pair), max(pair)) in found for pair in directed]))
    assert search["recall"] >= 0.99


def test_an_interrupted_search_goes_on_with_the_index(vectors: Vectors, tmp_path: Path) -> None:
    stage = run_dedup(vectors, out=tmp_path / "out", settings=INDEX)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("rows.npy", "removed.parquet", "summary.json")}
    index = stage.path("index", 0)
    written = index.stat().st_mtime_ns
    stage.path("pairs", 1).unlink()
    (tmp_path / "out/summary.json").unlink()
    run_dedup(vectors, out=tmp_path / "out", settings=INDEX)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before
    assert index.stat().st_mtime_ns == written


def test_without_faiss_it_says_what_to_install(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(FovealError, match=r"pip install 'foveal\[ann\]'"):
        run_dedup(vectors, out=tmp_path / "out", settings=INDEX)
