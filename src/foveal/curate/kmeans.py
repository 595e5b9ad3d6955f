"""Spherical k-means: points and centroids of unit length, nearness by cosine.

Sums are formed in float64 in the order of the rows, and points that lie between centroids, closer than rounding can
tell, are decided in float64: threads, blocks and the precision of the products change the time, not the answer.

Shapes: N points, D width, k clusters.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from foveal.curate.pairs import one_thread_each
from foveal.engine.cpu import has_bf16
from foveal.errors import FovealError

# How far a cosine of bf16 products may be from the true one: unit vectors rounded to 8 bits move by at
# most 2^-9 of their length each, and the result is rounded once more. Float32 sums of D numbers move by D * 2^-24.
_BF16_ERROR = 3 * 2**-9
_SCORES_AT_A_TIME = 2**21  # of a block, which should stay in a core's cache
_LARGEST_START = 128  # clusters that one k-means++ looks for; more are found in groups
_ROWS_AT_A_TIME = 8192
_SHORTEST = 1e-12


class Assigned(NamedTuple):
    """The nearest centroid of each point (N,) int64, and the cosine to it (N,) float64."""

    clusters: np.ndarray
    similarities: np.ndarray


class Fit(NamedTuple):
    """What `fit` found.

    Attributes:
        centroids: (k, D) float32, of unit length.
        inertia: mean of 1 - cosine of the points to their centroids, before the last step.
        num_steps: Lloyd steps made.
        num_empty: clusters that got no point in the last step.
    """

    centroids: np.ndarray
    inertia: float
    num_steps: int
    num_empty: int


def assign(points: np.ndarray, centroids: np.ndarray, *, bf16: bool | None = None) -> Assigned:
    """Return the nearest centroid of each point; of equally near ones the lower number.

    Products choose candidates, in bf16 where the processor has it; those within the rounding of the best are compared
    in float64.

    Args:
        points: (N, D) float32, of unit length.
        centroids: (k, D) float32, of unit length.
        bf16: form products in bf16; None where the processor has instructions for it.
    """
    bf16 = has_bf16() if bf16 is None else bf16
    error = _BF16_ERROR if bf16 else points.shape[1] * 2.0**-24
    dtype = torch.bfloat16 if bf16 else torch.float32
    right = torch.from_numpy(centroids).to(dtype).T
    size = max(64, _SCORES_AT_A_TIME // len(centroids))
    blocks = [points[first : first + size] for first in range(0, len(points), size)]
    with one_thread_each() as pool:
        parts = list(pool.map(lambda block: _assign_block(block, centroids, right, 2 * error), blocks))
    return Assigned(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _assign_block(points: np.ndarray, centroids: np.ndarray, right: torch.Tensor, margin: float) -> Assigned:
    scores = torch.from_numpy(points).to(right.dtype) @ right
    near = _near_best(scores, margin)
    place, cluster = np.divmod(np.flatnonzero(near), len(centroids))
    similarities = np.empty(len(place))
    for first in range(0, len(place), _ROWS_AT_A_TIME):  # of many equal points all are near all
        some = slice(first, first + _ROWS_AT_A_TIME)
        similarities[some] = np.einsum("cd,cd->c", points[place[some]], centroids[cluster[some]], dtype=np.float64)
    order = np.lexsort((cluster, -similarities, place))
    best = order[np.diff(place[order], prepend=-1) != 0]
    return Assigned(cluster[best], similarities[best])


def _near_best(scores: torch.Tensor, margin: float) -> np.ndarray:
    """Return where scores are within a margin of the best of their row.

    Positive numbers of bf16 are in the order of their bits as int16, and negative ones below them: comparing these, by
    NumPy, is several times as fast.
    """
    if scores.dtype == torch.bfloat16:
        bits = scores.view(torch.int16)
        best = bits.amax(dim=1, keepdim=True)
        least = best.view(torch.bfloat16).float() - margin
        if bool((least > 0).all()):
            # one step lower, lest rounding to bf16 raise it
            return bits.numpy() >= (least.to(torch.bfloat16).view(torch.int16) - 1).numpy()
    return (scores >= scores.amax(dim=1, keepdim=True).float() - margin).numpy()


def sums_of(points: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the clusters with points (c,), their sums (c, D) float64 in the order of the points, and counts (c,)."""
    present, places, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(present), points.shape[1], dtype=torch.float64)
    for first in range(0, len(points), _ROWS_AT_A_TIME):
        block = torch.from_numpy(points[first : first + _ROWS_AT_A_TIME]).double()
        sums.index_add_(0, torch.from_numpy(places[first : first + _ROWS_AT_A_TIME]), block)
    return present, sums.numpy(), counts


def moved(centroids: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return centroids (k, D) in the direction of sums (k, D) float64; one whose sum is 0 stays."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit = np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > _SHORTEST)
    return np.where(lengths > _SHORTEST, unit, centroids).astype(np.float32)


def fit(
    points: np.ndarray, centroids: np.ndarray, *, steps: int, tolerance: float = 1e-4, bf16: bool | None = None
) -> Fit:
    """Make Lloyd steps on points in memory.

    An empty cluster is given, before the next step, one of the points that are farthest from their centroids.

    Args:
        points: (N, D) float32, of unit length.
        centroids: (k, D) to start from.
        steps: at most.
        tolerance: stop when the inertia falls by less than this share of it.
        bf16: see `assign`.
    """
    before, num_steps, num_empty = math.inf, 0, 0
    while num_steps < steps:
        found = assign(points, centroids, bf16=bf16)
        present, sums, _ = sums_of(points, found.clusters)
        inertia = float(1 - found.similarities.mean())
        num_empty, num_steps = len(centroids) - len(present), num_steps + 1
        whole = np.zeros(centroids.shape, np.float64)
        whole[present] = sums
        centroids = moved(centroids, whole)
        if num_empty:
            empty = np.setdiff1d(np.arange(len(centroids)), present)
            centroids[empty] = farthest(points, found, len(empty), fallback=centroids[empty])
        elif before - inertia <= tolerance * inertia:
            return Fit(centroids, inertia, num_steps, 0)
        before = inertia
    return Fit(centroids, before, num_steps, num_empty)


def farthest(points: np.ndarray, found: Assigned, count: int, *, fallback: np.ndarray) -> np.ndarray:
    """Return (count, D) distinct points that are farthest from their centroids; where there are too few, `fallback`."""
    order = np.lexsort((np.arange(len(points)), found.similarities))[: 4 * count]
    away = order[found.similarities[order] < 1 - 1e-6]
    distinct = np.sort(np.unique(points[away], axis=0, return_index=True)[1])[:count]
    chosen = fallback.copy()
    chosen[: len(distinct)] = points[away[distinct]]
    return chosen


def start(points: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """Return k of the points (k, D) to start from, by k-means++; beyond 128 in groups, each by k-means++.

    Source: Arthur and Vassilvitskii 2007, with 2 + ln k candidates a step of which the best is taken.

    Raises:
        FovealError: fewer distinct points than k.
    """
    if k <= _LARGEST_START:
        chosen = _plus_plus(points, k, generator)
        if len(chosen) < k:
            raise _too_few(len(chosen), k)
        return points[chosen]
    num_groups = round(math.sqrt(k))
    sample = np.sort(generator.choice(len(points), min(len(points), 256 * num_groups), replace=False))
    centres = fit(points[sample], start(points[sample], num_groups, generator), steps=5).centroids
    groups = assign(points, centres)
    spread = np.bincount(groups.clusters, 1 - groups.similarities, minlength=num_groups).clip(min=0)
    members = [np.flatnonzero(groups.clusters == group) for group in range(num_groups)]
    distinct = np.unique(points, axis=0, return_index=True)[1]
    room, wanted = np.bincount(groups.clusters[distinct], minlength=num_groups), np.zeros(num_groups, np.int64)
    found = [np.empty(0, np.int64)] * num_groups
    while (sizes := np.array([len(one) for one in found])).sum() < k:  # again where some differ by rounding only
        room = np.where(sizes < wanted, sizes, room)
        shares = _shares(k, spread, room)
        for group in np.flatnonzero(shares != sizes):
            rows = members[group]
            found[group] = rows[_plus_plus(points[rows], int(shares[group]), generator)] if shares[group] else rows[:0]
        wanted = shares
    return points[np.concatenate(found)]


def _shares(k: int, spread: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Return how many of k clusters each group gets: in proportion to its spread, no more than it has room for."""
    if room.sum() < k:
        raise _too_few(int(room.sum()), k)
    shares = np.minimum(np.floor(k * spread / max(spread.sum(), _SHORTEST)).astype(np.int64).clip(min=1), room)
    while (left := k - shares.sum()) != 0:
        order = np.argsort(-spread / (shares + 1), kind="stable")
        order = order[shares[order] < room[order]] if left > 0 else order[::-1][shares[order[::-1]] > 0]
        shares[order[: abs(left)]] += np.sign(left)
    return shares


def _plus_plus(points: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """Return the numbers of k points, each drawn in proportion to its squared distance from those before it.

    They are fewer where no more are further from each other than rounding can tell.
    """
    num_tried = 2 + int(math.log(k))
    rows = torch.from_numpy(points)
    chosen = [int(generator.integers(len(points)))]
    distance = _distances(rows, chosen)[:, 0]
    while len(chosen) < k:
        total = distance.double().cumsum(0).numpy()
        if total[-1] <= 0:
            break
        tried = np.searchsorted(total, generator.random(num_tried) * total[-1], side="right").clip(max=len(points) - 1)
        closer = torch.minimum(distance[:, None], _distances(rows, tried.tolist()))
        best = int(closer.double().sum(dim=0).argmin())
        chosen.append(int(tried[best]))
        distance = closer[:, best].contiguous()
    return np.array(chosen)


def _distances(rows: torch.Tensor, chosen: list[int]) -> torch.Tensor:
    """Return (N, c) half the squared distances to some of the points; 0 to copies."""
    distance = 1 - rows @ rows[chosen].T
    return distance.masked_fill_(distance < 1e-6, 0)


def _too_few(distinct: int, k: int) -> FovealError:
    return FovealError(
        f"{k} clusters of vectors of which only {distinct} are distinct; ask for at most {distinct} clusters"
    )
