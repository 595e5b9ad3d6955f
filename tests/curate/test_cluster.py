import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.curate import cluster
from foveal.curate.cluster import ClusterSettings, load_clusters, run_cluster
from foveal.curate.kmeans import assign
from foveal.curate.runner import Runner
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError

MakeStore = Callable[..., Path]
SETTINGS = ClusterSettings(levels=(7, 3), resampling=(1,), rows_per_cluster=5, shard_rows=11, steps=3, full_steps=2)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def drawn(num_rows: int, seed: int, width: int = 5) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(num_rows, width)))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the one that holds absolute paths of sources."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "stage.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def test_rows_belong_to_their_nearest_centroid_and_clusters_to_their_parent(
    make_store: MakeStore, tmp_path: Path
) -> None:
    vectors = Vectors(make_store(drawn(60, 0)))
    stage = run_cluster(vectors, out=tmp_path / "c", settings=SETTINGS)
    found = load_clusters(tmp_path / "c")
    assert [len(level) for level in found.centroids] == [7, 3]
    np.testing.assert_allclose(np.linalg.norm(found.centroids[0], axis=1), 1, rtol=1e-6)
    nearest = (vectors.read(0, 60) @ found.centroids[0].T).argmax(axis=1)
    assert found.assignment(1).tolist() == nearest.tolist()
    above = (found.centroids[0] @ found.centroids[1].T).argmax(axis=1)
    assert found.assignment(2).tolist() == above[nearest].tolist()
    assert found.assign(vectors.read(3, 9), 2).tolist() == above[nearest][3:9].tolist()
    columns = stage.images().rows
    assert columns.column("cluster.1").to_pylist() == nearest.tolist()
    assert columns.column("cluster.2").to_pylist() == above[nearest].tolist()
    assert stage.summary is not None
    assert stage.summary["levels"][0]["largest"] == np.bincount(nearest).max()
    with pytest.raises(FovealError, match=r"level=3 of .* which has levels 1 to 2"):
        found.assignment(3)


def test_steps_over_all_rows_are_those_of_lloyd(make_store: MakeStore, tmp_path: Path) -> None:
    points = drawn(60, 0)
    settings = ClusterSettings(
        levels=(4,), resampling=(0,), rows_per_cluster=2, shard_rows=13, steps=1, full_steps=1, tolerance=0
    )
    stage = run_cluster(Vectors(make_store(points)), out=tmp_path / "c", settings=settings)
    begun = stage.load("start", 0)["centroids"]
    nearest = (points @ begun.T).argmax(axis=1)
    means = unit(np.stack([points[nearest == k].sum(axis=0) for k in range(4)]))
    np.testing.assert_allclose(load_clusters(tmp_path / "c").centroids[0], means, atol=1e-6)


def test_resampling_evens_out_what_is_dense(make_store: MakeStore, tmp_path: Path) -> None:
    """A dense blob of 900 points and 300 anywhere: k-means alone spends nearly half of its centroids on the blob."""
    generator = np.random.default_rng(0)
    blob = np.eye(6)[0] + 0.25 * generator.normal(size=(900, 6))
    vectors = Vectors(make_store(unit(np.concatenate([blob, generator.normal(size=(300, 6))])), shard_size=2000))
    on_blob = []
    for times in (0, 4):
        settings = ClusterSettings(levels=(40,), resampling=(times,), resampled=(4,), shard_rows=500)
        run_cluster(vectors, out=tmp_path / str(times), settings=settings)
        on_blob.append(int((load_clusters(tmp_path / str(times)).centroids[0][:, 0] > 0.75).sum()))
    assert on_blob[1] < 0.6 * on_blob[0]


def test_one_and_two_workers_and_a_run_cut_short_give_the_same_bytes(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = Vectors(make_store(drawn(60, 0)))
    run_cluster(vectors, out=tmp_path / "one", settings=SETTINGS)
    run_cluster(vectors, out=tmp_path / "two", settings=SETTINGS, runner=Runner(num_workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    whole, calls = cluster.sums_of_shard, []

    def fails_at_ninth(folder: Path, shard: int, *, step: str) -> None:
        calls.append(shard)
        if len(calls) == 9:
            raise KeyboardInterrupt
        whole(folder, shard, step=step)

    monkeypatch.setattr(cluster, "sums_of_shard", fails_at_ninth)
    with pytest.raises(KeyboardInterrupt):
        run_cluster(vectors, out=tmp_path / "cut", settings=SETTINGS)
    assert not (tmp_path / "cut" / "summary.json").exists()
    run_cluster(vectors, out=tmp_path / "cut", settings=SETTINGS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "one")
    assert not list((tmp_path / "one/shards").glob("full0*"))  # sums are removed once they are summed up


def test_a_run_cut_while_it_removes_sums_leaves_none(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, whole = Vectors(make_store(drawn(60, 0))), shutil.rmtree

    def cut(path: Path, **options: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        run_cluster(vectors, out=tmp_path / "cut", settings=SETTINGS)
    assert list((tmp_path / "cut/shards").glob("full0*"))
    monkeypatch.setattr(shutil, "rmtree", whole)
    run_cluster(vectors, out=tmp_path / "cut", settings=SETTINGS)
    run_cluster(vectors, out=tmp_path / "one", settings=SETTINGS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "one")


def test_wrong_numbers_of_clusters_are_refused(make_store: MakeStore, tmp_path: Path) -> None:
    vectors = Vectors(make_store(drawn(20, 0)))
    with pytest.raises(FovealError, match="21 clusters of 20 images; ask for fewer clusters, such as 2"):
        run_cluster(vectors, out=tmp_path / "c", settings=ClusterSettings(levels=(21,)))
    with pytest.raises(FovealError, match=r"levels=\[3, 7\] of clusters; give falling numbers"):
        ClusterSettings(levels=(3, 7))
    with pytest.raises(FovealError, match=r"resampling=\[1, 2\] for 3 levels"):
        ClusterSettings(levels=(9, 3, 1), resampling=(1, 2))
    with pytest.raises(FovealError, match="memory_bytes=100 holds 5 vectors, fewer than 7 clusters"):
        run_cluster(vectors, out=tmp_path / "c", settings=ClusterSettings(levels=(7,), memory_bytes=100))


def test_equal_images_are_no_clusters(make_store: MakeStore, tmp_path: Path) -> None:
    vectors = Vectors(make_store(np.tile(drawn(1, 0), (20, 1))))
    with pytest.raises(FovealError, match="2 clusters of vectors of which only 1 are distinct"):
        run_cluster(vectors, out=tmp_path / "c", settings=ClusterSettings(levels=(2,)))
    one = run_cluster(vectors, out=tmp_path / "d", settings=ClusterSettings(levels=(1,)))
    assert one.images().rows.column("cluster.1").to_pylist() == [0] * 20


def test_a_damaged_shard_is_named_and_done_again_when_removed(make_store: MakeStore, tmp_path: Path) -> None:
    vectors = Vectors(make_store(drawn(60, 0)))
    stage = run_cluster(vectors, out=tmp_path / "c", settings=SETTINGS)
    before = contents(tmp_path / "c")
    path = stage.path("finest", 2)
    path.write_bytes(path.read_bytes()[:-3])
    (tmp_path / "c/summary.json").unlink()
    with pytest.raises(FovealError, match=r"finest/00002\.safetensors is damaged.* remove"):
        run_cluster(vectors, out=tmp_path / "c", settings=SETTINGS)
    path.unlink()
    run_cluster(vectors, out=tmp_path / "c", settings=SETTINGS)
    assert contents(tmp_path / "c") == before


def test_clusters_of_a_subset_of_rows_number_that_subset(make_store: MakeStore, tmp_path: Path) -> None:
    rows = np.arange(1, 60, 2)
    np.save(tmp_path / "rows.npy", rows)
    points = drawn(60, 0)
    some = Vectors(make_store(points), rows=tmp_path / "rows.npy")
    run_cluster(some, out=tmp_path / "c", settings=SETTINGS)
    found = load_clusters(tmp_path / "c")
    assert found.assignment(1).tolist() == assign(points[rows], found.centroids[0]).clusters.tolist()
