"""Balanced sampling from a hierarchy of clusters: as even over the concepts as their sizes allow.

Source: Vo et al. 2024, arXiv 2405.15613, section 3.3. From the top down the images asked for are dealt to the clusters
of a level like water to vessels: each gets as much as the others, or all that it has.

Shapes: N rows, k clusters.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from foveal.curate.cluster import FINEST, Clusters, load_clusters
from foveal.curate.stage import Stage, open_stage, read_stage, removed_table
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet

SIZES = "sizes"
Pick = Literal["random", "closest"]


@dataclass(frozen=True)
class SampleSettings:
    """What is sampled.

    Attributes:
        target: images.
        pick: which images of a finest cluster: "random" ones, or those "closest" to its centroid.
        seed: of the choice.
    """

    target: int
    pick: Pick = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target < 1:
            raise FovealError(f"target={self.target} images; ask for 1 or more")
        if self.pick not in get_args(Pick):
            raise FovealError(f"pick={self.pick!r}; choose {' or '.join(get_args(Pick))}")


def run_sample(
    clusters: str | Path, *, out: str | Path, settings: SampleSettings, among: str | Path | None = None
) -> Stage:
    """Keep a number of images that is balanced over clusters.

    Args:
        clusters: folder of a finished `cluster` stage.
        out: folder of the stage.
        settings: how many, and which.
        among: folder of a finished stage that kept some of the clustered rows, such as `retrieve`: only these are
            sampled, and keep its columns. None is all.

    Returns:
        The finished stage: `target` images, with the columns of their clusters. Its step "sizes" holds, by level, the
        sizes of the clusters before and after.

    Raises:
        FovealError: a target beyond the images, or a stage of other rows.
    """
    found = load_clusters(clusters)
    images, places, inputs = _candidates(found, None if among is None else Path(among))
    if settings.target > len(places):
        raise FovealError(
            f"target={settings.target} images, and there are {len(places)} to choose from; ask for at most "
            f"{len(places)}, or loosen an earlier stage"
        )
    sources = {name: os.path.abspath(path) for name, path in (("clusters", clusters), ("among", among)) if path}
    stage = open_stage(out, "sample", settings=asdict(settings), inputs=inputs, sources=sources)
    if stage.summary is not None:
        return stage
    levels = [found.assignment(level)[places] for level in range(1, found.num_levels + 1)]
    closeness = _similarities(found)[places] if settings.pick == "closest" else None
    chosen = balanced(levels, settings.target, np.random.default_rng(settings.seed), closeness=closeness)
    sizes = {}
    for level, one in enumerate(levels, start=1):
        k = len(found.centroids[level - 1])
        sizes[f"before.{level}"] = np.bincount(one, minlength=k)
        sizes[f"after.{level}"] = np.bincount(one[chosen], minlength=k)
    stage.save(SIZES, 0, sizes)
    left = np.setdiff1d(np.arange(len(places)), chosen)
    kept = images.subset(chosen)
    rows = np.load(found.stage.rows)[places[chosen]]
    stage.finish(kept, _removed(images, levels[0], left, sizes), {"levels": _facts(sizes)}, rows=rows)
    return stage


def balanced(
    levels: list[np.ndarray], target: int, generator: np.random.Generator, *, closeness: np.ndarray | None = None
) -> np.ndarray:
    """Return which points to take, ascending: exactly `target`, balanced level by level from the top.

    Args:
        levels: of each level, the finest first, (N,) int64 the cluster of each point; the clusters of a level lie
            wholly within those of the next.
        target: points to take, 1 to N.
        generator: breaks ties, and chooses within finest clusters.
        closeness: (N,) of each point to its centroid, to take the closest; None takes random ones.
    """
    quotas = np.array([target])  # of all points as one cluster
    above = np.zeros(len(levels[0]), np.int64)
    for clusters in reversed(levels):
        present, places, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
        parent = np.empty(len(present), np.int64)
        parent[places] = above
        shares = np.empty(len(present), np.int64)
        order = np.argsort(parent, kind="stable")
        bounds = np.searchsorted(parent[order], np.arange(len(quotas) + 1))
        for quota, first, last in zip(quotas.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            children = order[first:last]
            shares[children] = dealt(sizes[children], quota, generator)
        quotas, above = shares, places
    rank = _ranks(above, generator.random(len(above)) if closeness is None else -closeness)
    return np.flatnonzero(rank < quotas[above])


def dealt(sizes: np.ndarray, target: int, generator: np.random.Generator) -> np.ndarray:
    """Return how much each of some clusters gives: the same, or all it has; what is over goes to random ones.

    Args:
        sizes: (k,) int64 of the clusters.
        target: of all together, 0 to their sum.
        generator: draws those that give one more.

    Example:
        >>> dealt(np.array([10, 2, 7]), 12, np.random.default_rng(0)).tolist()
        [5, 2, 5]
    """
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the highest level at which no more than the target is given
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= target else (low, middle - 1)
    given = np.minimum(sizes, low)
    larger = np.flatnonzero(sizes > low)
    given[generator.choice(larger, target - int(given.sum()), replace=False) if len(larger) else larger] += 1
    return given


def _ranks(clusters: np.ndarray, order_by: np.ndarray) -> np.ndarray:
    """Return the place of each point within its cluster."""
    order = np.lexsort((np.arange(len(clusters)), order_by, clusters))
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    rank = np.empty(len(clusters), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return rank


def _candidates(clusters: Clusters, among: Path | None) -> tuple[ImageSet, np.ndarray, dict[str, str]]:
    """Return the images to choose from with the columns of their clusters, their places, and what both depend on."""
    inputs = {"clusters": clusters.stage.stamp}
    if among is None:
        images = ImageSet.open(clusters.folder)
        return images, np.arange(len(images)), inputs
    stage = read_stage(among)
    if stage.summary is None or not stage.rows.is_file():
        raise FovealError(f"{among} is no finished stage that kept rows of vectors; run it first")
    if clusters.stage.inputs["vectors"] not in (stage.inputs.get("vectors"), stage.inputs.get("pool")):
        raise FovealError(f"{among} kept rows of other vectors than those of {clusters.folder}; cluster the same")
    images, places = stage.images(), np.searchsorted(np.load(clusters.stage.rows), np.load(stage.rows))
    table = images.rows
    for level in range(1, clusters.num_levels + 1):
        table = table.append_column(f"cluster.{level}", pa.array(clusters.assignment(level)[places]))
    return ImageSet(table, root=images.root), places, {**inputs, "among": stage.stamp}


def _similarities(clusters: Clusters) -> np.ndarray:
    num_shards = int((clusters.stage.summary or {})["num_shards"])
    return np.concatenate([clusters.stage.load(FINEST, shard)["similarities"] for shard in range(num_shards)])


def _removed(images: ImageSet, finest: np.ndarray, left: np.ndarray, sizes: dict[str, np.ndarray]) -> pa.Table:
    before, after = sizes["before.1"][finest[left]], sizes["after.1"][finest[left]]
    details = [
        f"{after_} of {before_} images of cluster {cluster} are kept"
        for cluster, before_, after_ in zip(finest[left].tolist(), before.tolist(), after.tolist(), strict=True)
    ]
    uris = images.rows.column("uri").take(pa.array(left))
    return removed_table({"uri": uris, "reason": ["balanced away"] * len(left), "detail": details})


def _facts(sizes: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return of each level the share of the largest tenth of its clusters, before and after."""
    facts = []
    for level in range(1, len(sizes) // 2 + 1):
        shares = {}
        for when in ("before", "after"):
            ordered = np.sort(sizes[f"{when}.{level}"])[::-1]
            tenth = ordered[: -(-len(ordered) // 10)].sum()
            shares[when] = round(float(tenth / ordered.sum()), 4)
        facts.append({"clusters": len(sizes[f"before.{level}"]), "share_of_largest_tenth": shares})
    return facts
