import itertools
import warnings

import numpy as np
import pytest

from foveal.curate.kmeans import Assigned, assign, farthest, fit, moved, start, sums_of
from foveal.errors import FovealError


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def drawn(num_rows: int, seed: int, width: int = 7) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(num_rows, width)))


@pytest.mark.parametrize("bf16", [True, False])
def test_assignment_is_the_exact_one_whatever_the_precision_of_its_products(bf16: bool) -> None:
    points, centroids = drawn(500, 0, width=48), drawn(301, 1, width=48)
    cosines = points.astype(np.float64) @ centroids.astype(np.float64).T
    found = assign(points, centroids, bf16=bf16)
    assert found.clusters.tolist() == cosines.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.similarities, cosines.max(axis=1), atol=1e-12)


def test_points_between_two_centroids_go_to_the_lower_number_and_negative_cosines_count() -> None:
    centroids = np.array([[0, 1], [1, 0], [0, -1], [1, 0]], np.float32)
    points = unit(np.array([[1, 1], [3, 1], [-1, -1e-9], [-1, 1]]))
    assert assign(points, centroids, bf16=True).clusters.tolist() == [0, 1, 2, 0]


def test_sums_are_those_of_float64() -> None:
    points = np.array([[1e8, 1], [1, 2], [-1e8, 3], [5, 4]], np.float32)
    present, sums, counts = sums_of(points, np.array([4, 4, 4, 1]))
    assert (present.tolist(), counts.tolist()) == ([1, 4], [1, 3])
    assert sums.tolist() == [[5, 4], [1, 6]]  # float32 would lose the 1 beside 1e8


def test_a_centroid_without_points_or_direction_stays() -> None:
    centroids = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    found = moved(centroids, np.array([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 1], [0.6, 0.8]], rtol=1e-6)


def test_converged_clusters_are_those_of_scikit_learn_where_both_agree_on_nearness() -> None:
    """On unit vectors in tight, far groups the nearest mean by distance is the nearest by cosine."""
    cluster = pytest.importorskip("sklearn.cluster")
    centres = drawn(5, 3, width=11)
    points = unit(np.repeat(centres, 40, axis=0) + 0.05 * np.random.default_rng(4).normal(size=(200, 11)))
    begin = points[[0, 45, 90, 130, 170]]
    ours = fit(points, begin, steps=50, tolerance=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = cluster.KMeans(5, init=begin, n_init=1, max_iter=50, tol=0).fit(points.astype(np.float64))
    assert assign(points, ours.centroids).clusters.tolist() == theirs.labels_.tolist()
    means = unit(theirs.cluster_centers_)
    np.testing.assert_allclose(ours.centroids, means, atol=1e-6)
    assert ours.inertia == pytest.approx(1 - (points * means[theirs.labels_]).sum(axis=1).mean(), abs=1e-6)


def test_inertia_never_rises() -> None:
    points = drawn(300, 0)
    begin = points[:12]
    found = [fit(points, begin, steps=steps, tolerance=0).inertia for steps in range(1, 9)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found))
    assert found[-1] < found[0]


def test_an_empty_cluster_is_given_the_farthest_point() -> None:
    points = unit(np.array([[1, 0], [1, 0.1], [1, -0.1], [0, 1]]))
    found = fit(points, unit(np.array([[1, 0], [-1, 0]])), steps=5)
    assert found.num_empty == 0
    assert sorted(assign(points, found.centroids).clusters.tolist()) == [0, 0, 0, 1]


def test_farthest_points_are_distinct_and_fall_back_where_there_are_too_few() -> None:
    points = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    found = farthest(
        points, Assigned(np.zeros(3, int), np.array([1.0, 0.0, 0.0])), 2, fallback=np.full((2, 2), 7, np.float32)
    )
    assert found.tolist() == [[0, 1], [7, 7]]


@pytest.mark.parametrize("k", [20, 150])
def test_the_start_is_as_many_distinct_points_and_spread_out(k: int) -> None:
    points = drawn(400, 0)
    found = start(points, k, np.random.default_rng(0))
    assert len(np.unique(found, axis=0)) == k
    assert {tuple(row) for row in found} <= {tuple(row) for row in points}
    at_random = points[np.random.default_rng(0).choice(400, k, replace=False)]
    assert assign(points, found).similarities.mean() > assign(points, at_random).similarities.mean()


def test_points_that_differ_by_rounding_leave_their_share_to_others() -> None:
    copies = np.repeat(drawn(300, 0, 16), 20, axis=0)
    points = copies + 3e-5 * drawn(6000, 1, 16)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert len(np.unique(points, axis=0)) == 6000
    found = start(points, 290, np.random.default_rng(1))
    assert len(np.unique(assign(found, copies[::20]).clusters)) == 290
    with pytest.raises(FovealError, match="301 clusters of vectors of which only 300 are distinct"):
        start(points, 301, np.random.default_rng(1))


@pytest.mark.parametrize(("k", "copies"), [(6, 30), (151, 30)])
def test_more_clusters_than_distinct_points_are_refused(k: int, copies: int) -> None:
    points = np.repeat(drawn(5 if k == 6 else 150, 0), copies, axis=0)
    with pytest.raises(FovealError, match=f"{k} clusters of vectors of which only .* are distinct"):
        start(points, k, np.random.default_rng(0))
    assert len(start(points, k - 1, np.random.default_rng(0))) == k - 1
