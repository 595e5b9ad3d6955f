from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.curate.cluster import ClusterSettings, load_clusters, run_cluster
from foveal.curate.sample import SampleSettings, balanced, dealt, run_sample
from foveal.curate.stage import open_stage, removed_table
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError

MakeStore = Callable[..., Path]


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12), share=st.floats(0, 1), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_what_is_dealt_is_level_and_exactly_the_target(sizes: list[int], share: float, seed: int) -> None:
    target = int(share * sum(sizes))
    found = dealt(np.array(sizes), target, np.random.default_rng(seed))
    assert found.sum() == target
    assert (found <= sizes).all()
    top = found.max()
    assert all(given >= min(size, top - 1) for given, size in zip(found.tolist(), sizes, strict=True))


@given(data=st.data(), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_sample_of_a_hierarchy_is_exact_and_level_among_siblings(data: st.DataObject, seed: int) -> None:
    middle_of = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=9)))  # of each finest cluster
    top_of = np.array(data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5)))
    finest = np.array(data.draw(st.lists(st.integers(0, len(middle_of) - 1), min_size=1, max_size=80)))
    levels = [finest, middle_of[finest], top_of[middle_of[finest]]]
    target = data.draw(st.integers(1, len(finest)))
    chosen = balanced(levels, target, np.random.default_rng(seed))
    assert len(np.unique(chosen)) == len(chosen) == target
    for clusters, above in zip(levels, [*levels[1:], np.zeros_like(finest)], strict=True):
        for parent in np.unique(above):
            siblings = np.unique(clusters[above == parent])
            given_ = [int((clusters[chosen] == one).sum()) for one in siblings]
            sizes = [int((clusters == one).sum()) for one in siblings]
            assert all(one >= min(size, max(given_) - 1) for one, size in zip(given_, sizes, strict=True))


def test_a_hierarchy_is_balanced_from_the_top() -> None:
    """Two concepts of 90 and 6 images; the large one in clusters of 80, 8 and 2."""
    finest = np.repeat([0, 1, 2, 3], [80, 8, 2, 6])
    top = np.repeat([0, 1], [90, 6])
    chosen = balanced([finest, top], 20, np.random.default_rng(0))
    assert np.bincount(top[chosen]).tolist() == [14, 6]
    assert np.bincount(finest[chosen]).tolist() == [6, 6, 2, 6]
    flat = balanced([finest], 20, np.random.default_rng(0))
    assert np.bincount(finest[flat]).tolist() == [6, 6, 2, 6]


def test_levels_differ_from_finest_clusters_alone() -> None:
    """Ten clusters of one concept and one of another: the hierarchy gives each concept half, flat clusters a tenth."""
    finest = np.repeat(np.arange(11), 10)
    top = np.repeat([0, 1], [100, 10])
    assert np.bincount(top[balanced([finest, top], 20, np.random.default_rng(0))]).tolist() == [10, 10]
    assert np.bincount(top[balanced([finest], 22, np.random.default_rng(0))]).tolist() == [20, 2]


def test_the_closest_are_taken_when_asked_for_and_random_ones_differ_by_seed() -> None:
    closeness = np.array([0.1, 0.9, 0.5, 0.2, 0.8])
    finest = np.array([0, 0, 0, 1, 1])
    assert balanced([finest], 2, np.random.default_rng(0), closeness=closeness).tolist() == [1, 4]
    many = np.zeros(50, np.int64)
    drawn = [balanced([many], 10, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.fixture
def clustered(make_store: MakeStore, tmp_path: Path) -> tuple[Vectors, Path]:
    """60 points in a tight group of 40 and 20 others, clustered."""
    generator = np.random.default_rng(0)
    points = np.concatenate([[3, 0, 0, 0] + 0.1 * generator.normal(size=(40, 4)), generator.normal(size=(20, 4))])
    vectors = Vectors(make_store(points.astype(np.float32)))
    run_cluster(vectors, out=tmp_path / "clusters", settings=ClusterSettings(levels=(8, 2), shard_rows=16))
    return vectors, tmp_path / "clusters"


def test_a_sample_is_an_image_set_that_says_what_it_left_out(clustered: tuple[Vectors, Path], tmp_path: Path) -> None:
    _, folder = clustered
    stage = run_sample(folder, out=tmp_path / "out", settings=SampleSettings(target=25))
    found = load_clusters(folder)
    rows = np.load(stage.rows)
    assert len(rows) == 25
    assert stage.images().rows.column("uri").to_pylist() == [f"{row:04d}.png" for row in rows]
    assert stage.images().rows.column("cluster.1").to_pylist() == found.assignment(1)[rows].tolist()
    sizes = stage.load("sizes", 0)
    assert sizes["before.1"].tolist() == np.bincount(found.assignment(1), minlength=8).tolist()
    assert sizes["after.2"].tolist() == np.bincount(found.assignment(2)[rows], minlength=2).tolist()
    removed = stage.removed().to_pylist()
    assert len(removed) == 35
    cluster = found.assignment(1)[int(removed[0]["uri"][:4])]
    assert removed[0]["detail"] == (
        f"{sizes['after.1'][cluster]} of {sizes['before.1'][cluster]} images of cluster {cluster} are kept"
    )
    assert stage.summary is not None
    shares = stage.summary["levels"][0]["share_of_largest_tenth"]
    assert shares["after"] < shares["before"] == round(sizes["before.1"].max() / 60, 4)


def test_only_what_an_earlier_stage_kept_is_sampled_with_its_columns(
    clustered: tuple[Vectors, Path], tmp_path: Path
) -> None:
    vectors, folder = clustered
    rows = np.arange(0, 60, 4)
    earlier = open_stage(tmp_path / "retrieved", "retrieve", settings={}, inputs={"pool": vectors.hash}, sources={})
    with pytest.raises(FovealError, match="is no finished stage"):
        run_sample(folder, out=tmp_path / "out", settings=SampleSettings(target=9), among=earlier.folder)
    earlier.finish(vectors.images().subset(rows), removed_table({"uri": []}), {}, rows=rows)
    stage = run_sample(folder, out=tmp_path / "out", settings=SampleSettings(target=9), among=earlier.folder)
    assert set(np.load(stage.rows).tolist()) < set(rows.tolist())
    with pytest.raises(FovealError, match="target=16 images, and there are 15 to choose from"):
        run_sample(folder, out=tmp_path / "more", settings=SampleSettings(target=16), among=earlier.folder)
    other = open_stage(tmp_path / "other", "retrieve", settings={}, inputs={"pool": "another"}, sources={})
    other.finish(vectors.images().subset(rows), removed_table({"uri": []}), {}, rows=rows)
    with pytest.raises(FovealError, match="kept rows of other vectors"):
        run_sample(folder, out=tmp_path / "more", settings=SampleSettings(target=9), among=other.folder)
    asked = {"pool": "another", "queries s": vectors.hash}  # the clustered ones asked, and did not answer
    other = open_stage(tmp_path / "asked", "retrieve", settings={}, inputs=asked, sources={})
    other.finish(vectors.images().subset(rows), removed_table({"uri": []}), {}, rows=rows)
    with pytest.raises(FovealError, match="kept rows of other vectors"):
        run_sample(folder, out=tmp_path / "more", settings=SampleSettings(target=9), among=other.folder)


def test_wrong_settings_of_sampling_are_refused(clustered: tuple[Vectors, Path], tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="target=0 images"):
        SampleSettings(target=0)
    with pytest.raises(FovealError, match="pick='best'; choose random or closest"):
        SampleSettings(target=1, pick="best")  # type: ignore[arg-type]
    with pytest.raises(FovealError, match="there are 60 to choose from"):
        run_sample(clustered[1], out=tmp_path / "out", settings=SampleSettings(target=61))
