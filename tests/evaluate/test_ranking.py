import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from foveal.errors import FovealError
from foveal.evaluate.ranking import mean_precision, precision_at, relevant_places, trapezoid_precision


def area_under_steps(ranking: list[int], relevant: set[int], junk: set[int]) -> float:
    """Evaluate the rules as they are told: walk down the ranking, and add a trapezoid at each relevant image."""
    seen = hits = 0
    area, precision = 0.0, 1.0
    for image in ranking:
        if image in junk:
            continue
        seen += 1
        hits += image in relevant
        if image in relevant:
            area += (precision + hits / seen) / 2 / len(relevant)
        precision = hits / seen
    return area


@pytest.mark.parametrize("seed", range(5))
def test_trapezoids_with_junk_match_a_walk_down_the_ranking(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ranking = generator.permutation(23)
    relevant, junk = np.split(generator.permutation(23)[:11], [5])
    places = relevant_places(ranking, relevant, junk=junk)
    expected = area_under_steps(ranking.tolist(), set(relevant.tolist()), set(junk.tolist()))
    assert trapezoid_precision(places, 5) == pytest.approx(expected, abs=1e-12)


def test_rankings_made_by_hand() -> None:
    ranking = np.array([7, 3, 9, 1])
    assert relevant_places(ranking, np.array([3, 1]), junk=np.array([7, 9])).tolist() == [0, 1]
    assert trapezoid_precision(np.array([0, 1]), 2) == 1.0
    assert trapezoid_precision(np.array([1]), 1) == 0.25  # precision 0 before it, 1/2 at it
    assert mean_precision(np.array([1]), 1) == 0.5
    assert trapezoid_precision(np.array([0]), 2) == 0.5  # the other was not ranked at all
    assert precision_at(np.array([0, 2]), 10) == pytest.approx(2 / 3)  # up to the last relevant image
    assert precision_at(np.array([0, 2]), 2) == 0.5
    assert precision_at(np.empty(0, np.int64), 5) == 0.0


def test_mean_of_precisions_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(31) < 0.3
    expected = average_precision_score(right, -np.arange(31))
    assert mean_precision(np.flatnonzero(right), int(right.sum())) == pytest.approx(expected, abs=1e-12)


def test_an_image_that_is_relevant_and_junk_is_refused() -> None:
    with pytest.raises(FovealError, match="image number 2 is both relevant and junk"):
        relevant_places(np.arange(4), np.array([1, 2]), junk=np.array([2]))
