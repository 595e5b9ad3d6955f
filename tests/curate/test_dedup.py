import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foveal.curate.dedup import DedupSettings, run_dedup
from foveal.curate.runner import Runner
from foveal.curate.stage import Stage
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet
from tests.disks import no_file_above

MakeStore = Callable[..., Path]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def at_cosine(rows: np.ndarray, cosines: np.ndarray, seed: int) -> np.ndarray:
    """Return for each row one at a given cosine, in a random direction."""
    noise = np.random.default_rng(seed).standard_normal(rows.shape)
    noise = unit(noise - (noise * rows).sum(1, keepdims=True) * rows)
    return cosines[:, None] * rows + np.sqrt(1 - cosines[:, None] ** 2) * noise


def pool(num_rows: int = 60, width: int = 37, seed: int = 0) -> np.ndarray:
    """Return rows of which the second half are copies of some of the first, at cosines of 0.3 to 1."""
    generator = np.random.default_rng(seed)
    originals = unit(generator.standard_normal((num_rows // 2, width)))
    sources = originals[generator.integers(0, len(originals), num_rows - len(originals))]
    return np.concatenate([originals, at_cosine(sources, np.linspace(0.3, 1, len(sources)), seed + 1)])


def components(rows: np.ndarray, similarity: float, k: int) -> np.ndarray:
    """Label components of the graph of k nearest neighbours, row by row and in float64."""
    rows = unit(rows.astype(np.float32).astype(np.float64))
    labels = np.arange(len(rows))
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    for row in range(len(rows)):
        nearest = np.argsort(-cosines[row], kind="stable")[:k]
        for other in nearest[cosines[row, nearest] >= similarity]:
            low, high = sorted((labels[row], labels[other]))
            labels[labels == high] = low
    return labels


def reasons(stage: Stage) -> dict[str, str]:
    return {row["uri"]: row["reason"] for row in stage.removed().to_pylist()}


@pytest.mark.parametrize(("k", "shard_size"), [(64, 1000), (64, 7), (1, 7), (2, 13)])
def test_one_of_every_component_of_the_graph_stays(
    make_store: MakeStore, tmp_path: Path, k: int, shard_size: int
) -> None:
    rows = pool()
    settings = DedupSettings(similarity=0.55, neighbours=k, shard_size=shard_size, keep="first")
    stage = run_dedup(Vectors(make_store(rows)), out=tmp_path / "out", settings=settings)
    labels = components(rows, 0.55, k)
    kept = np.unique(labels)
    assert 30 <= len(kept) < 60
    assert np.load(stage.rows).tolist() == kept.tolist()
    assert stage.images().rows.column("uri").to_pylist() == [f"{row:04d}.png" for row in kept]
    removed = {row["uri"]: row for row in stage.removed().to_pylist()}
    exact = unit(rows)
    for row in set(range(60)) - set(kept.tolist()):
        found = removed[f"{row:04d}.png"]
        assert (found["reason"], found["kept_uri"]) == ("duplicate", f"{labels[row]:04d}.png")
        assert found["score"] == pytest.approx(exact[row] @ exact[labels[row]], abs=1e-6)
    assert stage.summary is not None
    assert stage.summary["by_reason"] == {"duplicate": 60 - len(kept)}
    assert stage.summary["num_groups"] == sum(np.bincount(labels) > 1)


def test_the_largest_stays_then_the_one_of_most_bytes_then_the_first(make_store: MakeStore, tmp_path: Path) -> None:
    rows = np.eye(5, 8)[[0, 0, 0, 1, 1, 2]] + 0.01 * np.random.default_rng(0).standard_normal((6, 8))
    sizes = np.array([[10, 10], [30, 10], [10, 30], [5, 5], [5, 5], [9, 9]])  # bytes grow with the row
    store = Vectors(make_store(rows, sizes=sizes))
    kept = {}
    for keep in ("largest", "first"):
        stage = run_dedup(store, out=tmp_path / keep, settings=DedupSettings(keep=keep))  # type: ignore[arg-type]
        kept[keep] = np.load(stage.rows).tolist()
    assert kept == {"largest": [2, 4, 5], "first": [0, 3, 5]}


def test_the_best_stays_by_a_quality_that_every_image_has(make_store: MakeStore, tmp_path: Path) -> None:
    store = Vectors(make_store(np.eye(2, 5)[[0, 0, 1]]))
    uris = ["0001.png", "0002.png", "0000.png"]
    scored = ImageSet(pa.table({"uri": uris, "quality": [0.9, 0.1, 0.2]}), root=tmp_path)
    best = DedupSettings(keep="best")
    stage = run_dedup(store, out=tmp_path / "best", settings=best, quality=scored)
    assert np.load(stage.rows).tolist() == [1, 2]
    with pytest.raises(FovealError, match="needs images with a quality"):
        run_dedup(store, out=tmp_path / "a", settings=best)
    with pytest.raises(FovealError, match=r"1 images have no quality, the first is 0000\.png"):
        run_dedup(store, out=tmp_path / "b", settings=best, quality=scored.subset([0, 1]))
    with pytest.raises(FovealError, match="have no column quality"):
        run_dedup(store, out=tmp_path / "c", settings=best, quality=ImageSet(pa.table({"uri": uris}), root=tmp_path))


def chain() -> tuple[np.ndarray, np.ndarray]:
    """Return a pool of a chain (0, 1, 2, each at cosine 0.5 of the next), a copy of 2 (3), and one apart (4).

    The evaluation image is at 0.5 of row 0 alone.
    """
    angles = np.deg2rad([60.0, 120.0, 180.0, 180.001])
    rows = np.zeros((5, 3))
    rows[:4, 0], rows[:4, 1], rows[4, 2] = np.cos(angles), np.sin(angles), 1
    return rows, np.array([[1.0, 0.0, 0.0]])


def test_components_with_an_evaluation_image_go_whole(make_store: MakeStore, tmp_path: Path) -> None:
    rows, evaluation = chain()
    pool, keep_out = Vectors(make_store(rows)), Vectors(make_store(evaluation, "eval", uris=["test/a.png"]))
    stage = run_dedup(pool, keep_out=keep_out, out=tmp_path / "out")
    assert np.load(stage.rows).tolist() == [4]
    removed = stage.removed().to_pylist()
    assert [(row["uri"], row["reason"], row["kept_uri"]) for row in removed] == [
        (f"{row:04d}.png", "keep-out", "test/a.png") for row in range(4)
    ]
    assert [row["score"] for row in removed] == [pytest.approx(0.5), None, None, None]
    assert "0000.png, which resembles an evaluation image" in removed[3]["detail"]


def test_direct_keep_out_takes_linked_images_only(make_store: MakeStore, tmp_path: Path) -> None:
    rows, evaluation = chain()
    settings = DedupSettings(keep_out_rule="direct")
    keep_out = Vectors(make_store(evaluation, "eval"))
    stage = run_dedup(Vectors(make_store(rows)), keep_out=keep_out, out=tmp_path / "out", settings=settings)
    assert reasons(stage) == {"0000.png": "keep-out", "0002.png": "duplicate"}  # of 2 and 3 the one of fewer bytes


def test_components_above_the_limit_are_listed_for_review(make_store: MakeStore, tmp_path: Path) -> None:
    rows, evaluation = chain()
    keep_out = Vectors(make_store(evaluation, "eval"))
    pool = Vectors(make_store(rows))
    for limit, kept in ((4, [4]), (3, [1, 3, 4])):
        out = tmp_path / str(limit)
        stage = run_dedup(pool, keep_out=keep_out, out=out, settings=DedupSettings(component_limit=limit))
        assert np.load(stage.rows).tolist() == kept
    review = pa.parquet.read_table(tmp_path / "3/review.parquet").to_pylist()
    assert [row["uri"] for row in review] == ["0001.png", "0002.png", "0003.png"]
    assert review[0] == {"uri": "0001.png", "component": "0000.png", "component_size": 4, "num_linked": 1}


def test_rows_equal_to_the_bit_use_up_no_neighbours_and_zeros_resemble_nothing(
    make_store: MakeStore, tmp_path: Path
) -> None:
    rows = np.zeros((9, 5))
    rows[[0, 3, 4, 5]] = [0, 1, 0, 0, 0]
    rows[6] = [0, 1, 0.1, 0, 0]
    rows[7] = [0, 1, 0.2, 0, 0]
    stage = run_dedup(
        Vectors(make_store(rows)), out=tmp_path / "out", settings=DedupSettings(neighbours=1, keep="first")
    )
    assert np.load(stage.rows).tolist() == [0, 1, 2, 8]
    assert stage.summary is not None
    assert stage.summary["num_equal"] == 3
    assert stage.summary["largest_group"] == 6


@pytest.mark.parametrize("num_rows", [1, 11])
def test_one_image_or_all_equal_leave_one(make_store: MakeStore, tmp_path: Path, num_rows: int) -> None:
    stage = run_dedup(Vectors(make_store(np.ones((num_rows, 3)))), out=tmp_path / "out")
    assert np.load(stage.rows).tolist() == [num_rows - 1]


def test_rows_kept_are_those_of_the_store_also_where_a_part_of_it_was_read(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(np.eye(4, 5)[[0, 1, 1, 2, 3]])
    np.save(tmp_path / "part.npy", np.array([1, 2, 4]))
    part = Vectors(store, rows=tmp_path / "part.npy")
    stage = run_dedup(part, out=tmp_path / "out", settings=DedupSettings(keep="first"))
    assert np.load(stage.rows).tolist() == [1, 4]
    assert Vectors(store, rows=stage.rows).images().rows.column("uri").to_pylist() == ["0001.png", "0004.png"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "stage.json"
    }


def test_two_workers_and_an_interrupted_run_give_the_same_bytes(make_store: MakeStore, tmp_path: Path) -> None:
    rows = pool(40)
    store, keep_out = make_store(rows), make_store(at_cosine(rows[:3], np.full(3, 0.5), 9), "eval")
    settings = DedupSettings(shard_size=9)

    def run(name: str, runner: Runner | None = None) -> dict[str, bytes]:
        out = tmp_path / name
        run_dedup(Vectors(store), keep_out=Vectors(keep_out), out=out, settings=settings, runner=runner)
        return contents(out)

    first = run("first")
    assert set(first) > {"rows.npy", "removed.parquet", "summary.json", "shards/pairs/00004.safetensors"}
    shutil.copytree(tmp_path / "first", tmp_path / "two")
    shutil.rmtree(tmp_path / "two/shards/pairs")
    (tmp_path / "two/summary.json").unlink()
    assert run("two", Runner(num_workers=2)) == first
    for name in (
        "summary.json",
        "imageset.json",
        "shards/pairs/00002.safetensors",
        "shards/held_out/00000.safetensors",
    ):
        (tmp_path / "first" / name).unlink()
    assert run("first") == first
    assert run("first") == first  # a finished one


def test_a_damaged_shard_and_a_full_disk_are_named(make_store: MakeStore, tmp_path: Path) -> None:
    store = Vectors(make_store(pool(40)))
    out = tmp_path / "out"
    with pytest.raises(FovealError, match="cannot be written"), no_file_above(200):
        run_dedup(store, out=out)
    run_dedup(store, out=out)
    (out / "summary.json").unlink()
    path = out / "shards/pairs/00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FovealError, match=r"00000\.safetensors is damaged"):
        run_dedup(store, out=out)


def test_bad_vectors_and_settings_are_refused(make_store: MakeStore, tmp_path: Path) -> None:
    rows = pool(20)
    good = Vectors(make_store(rows))
    rows[13, 2] = np.nan
    with pytest.raises(FovealError, match=r"0013\.png holds NaN"):
        run_dedup(Vectors(make_store(rows, "nan")), out=tmp_path / "a")
    with pytest.raises(FovealError, match="different descriptors: model"):
        run_dedup(good, keep_out=Vectors(make_store(pool(20), "other", model="large")), out=tmp_path / "b")
    with pytest.raises(FovealError, match="allow more memory or choose a smaller shard size"):
        run_dedup(good, out=tmp_path / "c", settings=DedupSettings(memory_bytes=1000))
    run_dedup(good, out=tmp_path / "c")  # the memory is no part of what decides the result
    with pytest.raises(FovealError, match=r"similarity is 0\.6 there and 0\.7 now"):
        run_dedup(good, out=tmp_path / "c", settings=DedupSettings(similarity=0.7))
    for wrong in ({"similarity": 60}, {"neighbours": 0}, {"keep": "smallest"}, {"min_recall": 0}, {"search": "fast"}):
        with pytest.raises(FovealError, match=next(iter(wrong))):
            DedupSettings(**wrong)  # type: ignore[arg-type]


def test_vectors_of_a_file_have_no_sizes_and_the_first_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "rows.npy", np.eye(2, 5, dtype=np.float16)[[0, 1, 1]])
    stage = run_dedup(Vectors(tmp_path / "rows.npy"), out=tmp_path / "out")
    assert "does not know the sizes" in caplog.text
    assert stage.images().rows.column("uri").to_pylist() == ["row 0", "row 1"]
