from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.curate.cluster import ClusterSettings, run_cluster
from foveal.curate.retrieve import RetrieveSettings, run_retrieve, share_out
from foveal.curate.runner import Runner
from foveal.curate.sample import SampleSettings, run_sample
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError

MakeStore = Callable[..., Path]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def drawn(num_rows: int, seed: int, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, width)).astype(np.float32)


def greedy(similarities: np.ndarray, per_query: int) -> dict[int, int]:
    """Give the best pair of all first, then the next: pool row -> query."""
    held: dict[int, int] = {}
    for place in np.argsort(-similarities, axis=None):
        query, row = map(int, np.unravel_index(place, similarities.shape))
        if row not in held and list(held.values()).count(query) < per_query:
            held[row] = query
    return held


def test_a_row_that_two_queries_want_goes_to_the_more_similar_and_the_other_takes_its_next() -> None:
    similarities = np.array([[0.9, 0.5], [0.8, 0.3]], np.float32)
    rows = np.array([[4, 6], [4, 2]])
    found = share_out(similarities, rows, per_query=1, taken=np.zeros(9, bool))
    assert found.rows.tolist() == [2, 4]
    assert found.queries.tolist() == [1, 0]
    np.testing.assert_allclose(found.scores, [0.3, 0.9])


@pytest.mark.parametrize("per_query", [1, 3])
def test_sharing_out_equals_taking_the_best_pairs_one_by_one(per_query: int) -> None:
    similarities = np.random.default_rng(per_query).random((11, 29)).astype(np.float32)
    order = np.argsort(-similarities, axis=1)
    found = share_out(
        np.take_along_axis(similarities, order, axis=1), order, per_query=per_query, taken=np.zeros(29, bool)
    )
    assert dict(zip(found.rows.tolist(), found.queries.tolist(), strict=True)) == greedy(similarities, per_query)


def test_rows_taken_before_are_passed_over() -> None:
    taken = np.array([False, True, False])
    similarities, rows = np.array([[0.9, 0.8, 0.7]], np.float32), np.array([[1, 0, 2]])
    assert share_out(similarities, rows, per_query=2, taken=taken).rows.tolist() == [0, 2]


def test_sample_based_retrieval_finds_the_nearest_and_says_for_whom(make_store: MakeStore, tmp_path: Path) -> None:
    pool, queries = drawn(40, 0), drawn(4, 1)
    stage = run_retrieve(
        Vectors(make_store(pool, "pool")),
        {"seeds": Vectors(make_store(queries, "seeds"))},
        out=tmp_path / "out",
        settings=RetrieveSettings(mode="sample", per_query=3, candidates=13),
    )
    similarities = unit(queries) @ unit(pool).T
    expected = greedy(similarities, 3)
    kept = stage.images().rows.to_pylist()
    assert np.load(stage.rows).tolist() == sorted(expected)
    for row, one in zip(sorted(expected), kept, strict=True):
        assert one["uri"] == f"{row:04d}.png"
        assert one["query"] == f"{expected[row]:04d}.png"
        assert (one["query_set"], one["method"], one["cluster"]) == ("seeds", "sample-based", None)
        assert one["score"] == pytest.approx(similarities[expected[row], row], abs=1e-5)
    assert stage.summary is not None
    assert stage.summary["by_reason"] == {"not retrieved": 28}
    assert stage.summary["query_sets"]["seeds"] == {
        "queries": 4,
        "method": "sample",
        "retrieved": 12,
        "missing": 0,
    }


def test_rows_of_some_rows_of_a_store_are_those_of_the_store(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(drawn(20, 0), "pool")
    np.save(tmp_path / "odd.npy", np.arange(1, 20, 2))
    odd, seeds = Vectors(store, rows=tmp_path / "odd.npy"), Vectors(make_store(drawn(2, 1), "seeds"))
    settings = RetrieveSettings(mode="sample", per_query=3)
    retrieved = run_retrieve(odd, {"s": seeds}, out=tmp_path / "retrieved", settings=settings)
    clusters = run_cluster(odd, out=tmp_path / "clusters", settings=ClusterSettings(levels=(2,)))
    sampled = run_sample(
        clusters.folder, among=retrieved.folder, out=tmp_path / "sampled", settings=SampleSettings(target=4)
    )
    clusters_of = dict(zip(clusters.images().rows["uri"].to_pylist(), clusters.images().rows["cluster.1"], strict=True))
    for stage in (retrieved, clusters, sampled):
        uris = stage.images().rows.column("uri").to_pylist()
        assert [f"{row:04d}.png" for row in np.load(stage.rows)] == uris
        assert Vectors(store, rows=stage.rows).images().rows.column("uri").to_pylist() == uris
    kept = sampled.images().rows
    assert [clusters_of[uri] for uri in kept["uri"].to_pylist()] == list(kept["cluster.1"])
    assert set(kept["uri"].to_pylist()) < set(retrieved.images().rows["uri"].to_pylist())


def test_parts_and_workers_change_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    pool, queries = Vectors(make_store(drawn(40, 0), "pool")), Vectors(make_store(drawn(9, 1), "seeds"))
    found = []
    for name, parts, workers in (("whole", {}, 1), ("two", {"pool_rows": 11, "query_rows": 4}, 2)):
        settings = RetrieveSettings(mode="sample", per_query=2, **parts)
        stage = run_retrieve(
            pool, {"s": queries}, out=tmp_path / name, settings=settings, runner=Runner(num_workers=workers)
        )
        found.append(stage.images().rows.to_pydict())
    assert found[0] == found[1]


def test_a_second_query_set_takes_what_the_first_has_left(make_store: MakeStore, tmp_path: Path) -> None:
    pool = Vectors(make_store(drawn(10, 0), "pool"))
    seeds = Vectors(make_store(drawn(2, 1), "seeds"))
    settings = RetrieveSettings(mode="sample", per_query=4, candidates=9)
    stage = run_retrieve(pool, {"one": seeds, "two": seeds}, out=tmp_path / "out", settings=settings)
    sets = stage.images().rows.column("query_set").to_pylist()
    assert (sets.count("one"), sets.count("two")) == (8, 2)
    assert stage.summary is not None
    assert stage.summary["query_sets"]["two"]["missing"] == 6


def test_wrong_settings_and_other_descriptors_are_refused(make_store: MakeStore, tmp_path: Path) -> None:
    pool = Vectors(make_store(drawn(10, 0), "pool"))
    other = Vectors(make_store(drawn(2, 1), "seeds", model="large"))
    with pytest.raises(FovealError, match="different descriptors: model"):
        run_retrieve(pool, {"s": other}, out=tmp_path / "out")
    with pytest.raises(FovealError, match=r"per_query=0 of retrieval; choose 1 or more"):
        RetrieveSettings(per_query=0)
    with pytest.raises(FovealError, match="mode='nearest' of retrieval; choose auto, sample, cluster"):
        RetrieveSettings(mode="nearest")  # type: ignore[arg-type]
    with pytest.raises(FovealError, match="needs clusters of the pool; make them with foveal cluster"):
        run_retrieve(pool, {"s": pool}, out=tmp_path / "out", settings=RetrieveSettings(mode="cluster"))
    clusters = run_cluster(pool, out=tmp_path / "clusters", settings=ClusterSettings(levels=(3,))).folder
    settings = RetrieveSettings(mode="cluster", level=2)
    with pytest.raises(FovealError, match=r"level=2 of .*, which has levels 1 to 1"):
        run_retrieve(pool, {"s": pool}, out=tmp_path / "out", clusters=clusters, settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_large_set_is_served_image_by_image_and_a_small_one_by_clusters() -> None:
    settings = RetrieveSettings(large=100)
    assert (settings.mode_of(100), settings.mode_of(101)) == ("cluster", "sample")
