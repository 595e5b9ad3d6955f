"""Measures of a ranking: average precision in its two definitions, precision and recall among the first.

Shapes: N database images, P relevant ones of a query. Places count from 0.
"""

import numpy as np

from foveal.errors import FovealError


def relevant_places(ranking: np.ndarray, relevant: np.ndarray, *, junk: np.ndarray | None = None) -> np.ndarray:
    """Return where the relevant images of a query stand once the junk is taken out of its ranking.

    Args:
        ranking: (N,) int64, the database images from the most similar on, each at most once.
        relevant: (P,) int64.
        junk: (J,) int64, images that count neither way.

    Returns:
        (P',) int64, ascending; images that the ranking lacks have no place.

    Raises:
        FovealError: an image is both relevant and junk.

    Example:
        >>> relevant_places(np.array([4, 2, 0, 1, 3]), np.array([0, 3]), junk=np.array([2]))
        array([1, 3])
    """
    junk = np.empty(0, np.int64) if junk is None else junk
    if both := sorted(set(relevant.tolist()) & set(junk.tolist())):
        raise FovealError(f"image number {both[0]} is both relevant and junk for one query; correct the ground truth")
    kept = ranking[~np.isin(ranking, junk)]
    return np.flatnonzero(np.isin(kept, relevant))


def trapezoid_precision(places: np.ndarray, num_relevant: int) -> float:
    """Return the average precision as the area under precision over recall, by trapezoids.

    The sum over relevant images j = 0, 1, ... at place r_j of (j / r_j + (j + 1) / (r_j + 1)) / 2, with 1 for 0 / 0,
    divided by their number: the precisions just before and at each of them. Source: the evaluation of arXiv 1803.11285.

    Args:
        places: (P',) as of `relevant_places`.
        num_relevant: P, those without a place included.
    """
    found = np.arange(len(places))
    before = np.where(places > 0, found / np.maximum(places, 1), 1.0)
    return float(((before + (found + 1) / (places + 1)) / 2).sum() / num_relevant)


def mean_precision(places: np.ndarray, num_relevant: int) -> float:
    """Return the average precision as the mean of the precisions at the relevant images; arguments as above."""
    return float(((np.arange(len(places)) + 1) / (places + 1)).sum() / num_relevant)


def precision_at(places: np.ndarray, k: int) -> float:
    """Return the share of relevant images among the first k, or up to the last relevant one where that comes earlier.

    Source: the evaluation of arXiv 1803.11285; 0 where no relevant image has a place.
    """
    if not len(places):
        return 0.0
    cut = min(int(places[-1]) + 1, k)
    return float((places < cut).sum() / cut)
