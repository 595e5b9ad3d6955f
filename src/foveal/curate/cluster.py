"""Hierarchical k-means: clusters of images, clusters of their centroids, and so on, flattened by resampling.

Source: Vo et al. 2024, arXiv 2405.15613, section 3. k-means puts many centroids where points are dense. Resampling
counters this: the r points nearest to each centroid, however many it has, are clustered again, and once more, so that
centroids come to lie evenly over what there is. Each further level clusters the centroids of the one below.

Vectors are read in shards; a sample of them, centroids and sums are in memory.

Shapes: N rows, D width, k clusters of a level.
"""

import functools
import logging
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foveal.curate.kmeans import assign, fit, moved, start, sums_of
from foveal.curate.runner import LOCAL, Runner
from foveal.curate.stage import SHARDS, Stage, open_stage, read_stage, removed_table
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)

CENTROIDS, FINEST = "centroids", "finest"
_READ_ROWS = 8192


@dataclass(frozen=True)
class ClusterSettings:
    """How images are clustered.

    Attributes:
        levels: clusters of each level, falling; the first is of images.
        resampling: times that each level is clustered again from resampled points; one number for all, or one a level.
        resampled: points nearest to each centroid that are taken then; 0 is half of a cluster's mean size, at least 1.
            One number for all, or one a level.
        steps: Lloyd steps at most, of every clustering in memory.
        full_steps: Lloyd steps at most over all rows, where the sample does not hold them.
        tolerance: stop when the inertia falls by less than this share of it.
        rows_per_cluster: size of the sample that the first level starts with, for each of its clusters.
        memory_bytes: bound on the points in memory.
        shard_rows: rows of a shard.
        seed: of the sample and of k-means++.
    """

    levels: tuple[int, ...]
    resampling: tuple[int, ...] = (10,)
    resampled: tuple[int, ...] = (0,)
    steps: int = 50
    full_steps: int = 10
    tolerance: float = 1e-4
    rows_per_cluster: int = 256
    memory_bytes: int = 4 * 2**30
    shard_rows: int = 65_536
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1 or list(self.levels) != sorted(set(self.levels), reverse=True):
            raise FovealError(f"levels={list(self.levels)} of clusters; give falling numbers such as 5000,500,50")
        for name in ("resampling", "resampled"):
            values = getattr(self, name)
            if len(values) not in (1, len(self.levels)) or min(values) < 0:
                raise FovealError(
                    f"{name}={list(values)} for {len(self.levels)} levels; give one number, or one for each level"
                )
        for name in ("steps", "full_steps", "rows_per_cluster", "memory_bytes", "shard_rows"):
            if getattr(self, name) < 1:
                raise FovealError(f"{name}={getattr(self, name)} of clustering; choose 1 or more")
        for name in ("tolerance", "seed"):
            if not getattr(self, name) >= 0:
                raise FovealError(f"{name}={getattr(self, name)} of clustering; choose 0 or more")

    def resampling_of(self, level: int) -> tuple[int, int]:
        """Return how often a level, from 1, is resampled, and with how many points of each cluster (0 is by size)."""
        times, points = (
            values[0] if len(values) == 1 else values[level - 1] for values in (self.resampling, self.resampled)
        )
        return times, points


class Clusters:
    """The clusters that a finished `cluster` stage has found.

    Attributes:
        folder: of the stage.
        centroids: of each level, (k, D) float32 of unit length, the finest first.
        parents: of each level but the last, (k,) int64: the cluster of the next level that its centroid is in.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open clusters; FovealError where the stage is another, unfinished or damaged."""
        stage = read_stage(folder)
        if stage.name != "cluster" or stage.summary is None:
            raise FovealError(f"{folder} is no finished foveal cluster; run that first")
        self.folder = Path(folder)
        self.stage = stage
        found = [stage.load(CENTROIDS, level) for level in range(1, len(stage.settings["levels"]) + 1)]
        self.centroids = [one["centroids"] for one in found]
        self.parents = [one["parents"] for one in found[:-1]]

    @property
    def num_levels(self) -> int:
        """Levels of clusters."""
        return len(self.centroids)

    @cached_property
    def finest(self) -> np.ndarray:
        """(N,) int64, the cluster of each row at level 1."""
        num_shards = int((self.stage.summary or {})["num_shards"])
        return np.concatenate([self.stage.load(FINEST, shard)["clusters"] for shard in range(num_shards)])

    def assignment(self, level: int) -> np.ndarray:
        """Return (N,) int64, the cluster of each row at a level, from 1."""
        return self._raised(self.finest, level)

    def assign(self, vectors: np.ndarray, level: int) -> np.ndarray:
        """Return (n,) int64, the clusters at a level of other vectors (n, D) of unit length."""
        return self._raised(assign(vectors, self.centroids[0]).clusters, level)

    def _raised(self, clusters: np.ndarray, level: int) -> np.ndarray:
        if not 1 <= level <= self.num_levels:
            raise FovealError(f"level={level} of {self.folder}, which has levels 1 to {self.num_levels}")
        for parents in self.parents[: level - 1]:
            clusters = parents[clusters]
        return clusters


def load_clusters(folder: str | Path) -> Clusters:
    """Return the clusters of a finished stage; FovealError where there are none."""
    return Clusters(folder)


def run_cluster(
    vectors: Vectors,
    *,
    out: str | Path,
    settings: ClusterSettings,
    runner: Runner = LOCAL,
    progress: Progress | None = None,
) -> Stage:
    """Cluster images in levels. All are kept; the columns cluster.1, cluster.2 and so on say where each belongs.

    Args:
        vectors: of the images.
        out: folder of the stage.
        settings: how.
        runner: where shards run.
        progress: called with (shards done, shards in all), for each pass over the vectors.

    Returns:
        The finished stage.

    Raises:
        FovealError: fewer rows, or distinct rows, than clusters; NaN; or a folder of something else.
    """
    if settings.levels[0] > vectors.num_rows:
        raise FovealError(
            f"{settings.levels[0]} clusters of {vectors.num_rows} images; ask for fewer clusters, such as "
            f"{max(1, vectors.num_rows // 10)}"
        )
    stage = open_stage(
        out, "cluster", settings=asdict(settings), inputs={"vectors": vectors.hash}, sources=vectors.sources()
    )
    if stage.summary is not None:
        return stage
    work = _Work(stage, vectors, settings, runner, progress)
    levels = [work.first_level()]
    for level in range(2, len(settings.levels) + 1):
        levels.append(_level_above(levels[-1], level, settings))
    for level, found in enumerate(levels, start=1):
        arrays = {"centroids": found}
        if level < len(levels):
            arrays["parents"] = assign(found, levels[level]).clusters
        stage.save(CENTROIDS, level, arrays)
    work.assign_all()
    _finish(stage, vectors, [stage.load(CENTROIDS, level).get("parents") for level in range(1, len(levels) + 1)])
    return stage


@dataclass(frozen=True)
class _Work:
    """A first level in the making."""

    stage: Stage
    vectors: Vectors
    settings: ClusterSettings
    runner: Runner
    progress: Progress | None

    @property
    def num_shards(self) -> int:
        return -(-self.vectors.num_rows // self.settings.shard_rows)

    def first_level(self) -> np.ndarray:
        """Return the centroids of the images."""
        centroids, whole = self._started()
        if not whole:
            centroids = self._full_steps(centroids)
        times, points = self.settings.resampling_of(1)
        for number in range(times):
            centroids = self._resampled(centroids, number, points)
        return centroids

    def _started(self) -> tuple[np.ndarray, bool]:
        """Return centroids of a sample, and whether that holds all rows."""
        k, settings = self.settings.levels[0], self.settings
        in_memory = settings.memory_bytes // (4 * self.vectors.width)
        size = min(self.vectors.num_rows, settings.rows_per_cluster * k, in_memory)
        if size < k:
            raise FovealError(
                f"memory_bytes={settings.memory_bytes} holds {size} vectors, fewer than {k} clusters; raise it"
            )
        if not self.stage.has("start"):
            generator = np.random.default_rng(settings.seed)
            sample = self._read(np.sort(generator.choice(self.vectors.num_rows, size, replace=False)))
            begun = start(sample, k, generator)
            found = fit(sample, begun, steps=settings.steps, tolerance=settings.tolerance)
            logger.info("%d clusters of a sample of %d: inertia %.4f", k, size, found.inertia)
            self.stage.save("start", 0, {"centroids": found.centroids})
        return self.stage.load("start", 0)["centroids"], size == self.vectors.num_rows

    def _full_steps(self, centroids: np.ndarray) -> np.ndarray:
        """Return centroids after Lloyd steps over all rows; one without rows stays where it is."""
        before = np.inf
        for number in range(self.settings.full_steps):
            moved_to = self._moved(centroids, number)
            inertia = float(moved_to["inertia"][0])
            centroids = moved_to["centroids"]
            if before - inertia <= self.settings.tolerance * inertia:
                break
            before = inertia
        return centroids

    def _moved(self, centroids: np.ndarray, number: int) -> dict[str, np.ndarray]:
        step = f"full{number:03d}"
        if not self.stage.has("full", number):
            self.stage.save(f"{step}.from", 0, {"centroids": centroids})
            self.runner.run(
                functools.partial(sums_of_shard, step=step), self.stage, step, self.num_shards, progress=self.progress
            )
            sums, inertia = np.zeros(centroids.shape, np.float64), 0.0
            for shard in range(self.num_shards):
                found = self.stage.load(step, shard)
                sums[found["present"]] += found["sums"]
                inertia += float(found["distance"][0])
            inertia /= self.vectors.num_rows
            self.stage.save("full", number, {"centroids": moved(centroids, sums), "inertia": np.array([inertia])})
            logger.info("step %d over %d rows: inertia %.4f", number, self.vectors.num_rows, inertia)
        self._forget(step)
        return self.stage.load("full", number)

    def _resampled(self, centroids: np.ndarray, number: int, points: int) -> np.ndarray:
        """Return centroids of the points nearest to each of these."""
        per_cluster = points or _half_of_mean(self.vectors.num_rows, len(centroids))
        in_memory = self.settings.memory_bytes // (4 * self.vectors.width * len(centroids))
        per_cluster = max(1, min(per_cluster, in_memory))
        step = f"nearest{number:03d}"
        if not self.stage.has("resampled", number):
            self.stage.save(f"{step}.from", 0, {"centroids": centroids, "count": np.array([per_cluster])})
            self.runner.run(
                functools.partial(nearest_of_shard, step=step),
                self.stage,
                step,
                self.num_shards,
                progress=self.progress,
            )
            parts = [self.stage.load(step, shard) for shard in range(self.num_shards)]
            clusters, similarities, rows = (
                np.concatenate([part[name] for part in parts]) for name in ("clusters", "similarities", "rows")
            )
            chosen = self._read(np.sort(rows[_nearest(clusters, similarities, rows, per_cluster)]))
            found = _again(chosen, centroids, np.random.default_rng([self.settings.seed, 1, number]), self.settings)
            self.stage.save("resampled", number, {"centroids": found})
        self._forget(step)
        return self.stage.load("resampled", number)["centroids"]

    def assign_all(self) -> None:
        """Assign every row to its nearest centroid of the first level."""
        self.runner.run(clusters_of_shard, self.stage, FINEST, self.num_shards, progress=self.progress)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.vectors.width), np.float32)
        for first in range(0, len(rows), _READ_ROWS):
            found[first : first + _READ_ROWS] = self.vectors.take(rows[first : first + _READ_ROWS])
        return found

    def _forget(self, step: str) -> None:
        """Remove the files of a step that is summed up."""
        for name in (step, f"{step}.from"):
            shutil.rmtree(self.stage.folder / SHARDS / name, ignore_errors=True)


def sums_of_shard(folder: Path, shard: int, *, step: str) -> None:
    """Sum the vectors of one shard by their nearest centroid."""
    stage, vectors, rows = _opened(folder, shard)
    centroids = stage.load(f"{step}.from", 0)["centroids"]
    sums, has_points, distance = np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), bool), 0.0
    for first in range(rows.start, rows.stop, _READ_ROWS):
        block = vectors.read(first, min(first + _READ_ROWS, rows.stop))
        found = assign(block, centroids)
        present, here, _ = sums_of(block, found.clusters)
        sums[present] += here
        has_points[present] = True
        distance += float((1 - found.similarities).sum())
    present = np.flatnonzero(has_points)
    stage.save(step, shard, {"present": present, "sums": sums[present], "distance": np.array([distance])})


def nearest_of_shard(folder: Path, shard: int, *, step: str) -> None:
    """Find the rows of one shard that are nearest to each centroid."""
    stage, vectors, rows = _opened(folder, shard)
    begun = stage.load(f"{step}.from", 0)
    clusters, similarities = _assigned(vectors, rows, begun["centroids"])
    numbers = np.arange(rows.start, rows.stop)
    best = _nearest(clusters, similarities, numbers, int(begun["count"][0]))
    stage.save(step, shard, {"clusters": clusters[best], "similarities": similarities[best], "rows": numbers[best]})


def clusters_of_shard(folder: Path, shard: int) -> None:
    """Assign the rows of one shard to the centroids of the first level."""
    stage, vectors, rows = _opened(folder, shard)
    clusters, similarities = _assigned(vectors, rows, stage.load(CENTROIDS, 1)["centroids"])
    stage.save(FINEST, shard, {"clusters": clusters, "similarities": similarities.astype(np.float32)})


def _opened(folder: Path, shard: int) -> tuple[Stage, Vectors, range]:
    stage = read_stage(folder)
    vectors = Vectors.of_sources(stage.sources)
    first = shard * int(stage.settings["shard_rows"])
    return stage, vectors, range(first, min(first + int(stage.settings["shard_rows"]), vectors.num_rows))


def _assigned(vectors: Vectors, rows: range, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = range(rows.start, rows.stop, _READ_ROWS)
    parts = [assign(vectors.read(first, min(first + _READ_ROWS, rows.stop)), centroids) for first in starts]
    return np.concatenate([part.clusters for part in parts]), np.concatenate([part.similarities for part in parts])


def _nearest(clusters: np.ndarray, similarities: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return which of the points are among the `count` nearest to their centroid; of equal ones the lower row."""
    order = np.lexsort((rows, -similarities, clusters))
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[rank < count])


def _level_above(points: np.ndarray, level: int, settings: ClusterSettings) -> np.ndarray:
    """Return the centroids of a level: clusters of the centroids of the one below."""
    generator = np.random.default_rng([settings.seed, level])
    k = settings.levels[level - 1]
    centroids = fit(points, start(points, k, generator), steps=settings.steps, tolerance=settings.tolerance).centroids
    times, count = settings.resampling_of(level)
    for _ in range(times):
        found = assign(points, centroids)
        chosen = _nearest(
            found.clusters, found.similarities, np.arange(len(points)), count or _half_of_mean(len(points), k)
        )
        centroids = _again(points[chosen], centroids, generator, settings)
    return centroids


def _again(
    points: np.ndarray, centroids: np.ndarray, generator: np.random.Generator, settings: ClusterSettings
) -> np.ndarray:
    """Return the centroids of resampled points, from a new start: from the old one they stay in dense places."""
    try:
        begun = start(points, len(centroids), generator)
    except FovealError as error:
        logger.warning("resampled points are not clustered again: %s", error)
        return centroids
    return fit(points, begun, steps=settings.steps, tolerance=settings.tolerance).centroids


def _half_of_mean(num_points: int, k: int) -> int:
    return max(1, num_points // (2 * k))


def _finish(stage: Stage, vectors: Vectors, parents: list[np.ndarray | None]) -> None:
    num_shards = -(-vectors.num_rows // int(stage.settings["shard_rows"]))
    parts = [stage.load(FINEST, shard) for shard in range(num_shards)]
    clusters = np.concatenate([part["clusters"] for part in parts])
    similarities = np.concatenate([part["similarities"] for part in parts])
    images = vectors.images()
    table, levels = images.rows, []
    for level, above in enumerate(parents, start=1):
        table = table.append_column(f"cluster.{level}", pa.array(clusters.astype(np.int64)))
        levels.append(_facts(np.bincount(clusters, minlength=stage.settings["levels"][level - 1])))
        clusters = clusters if above is None else above[clusters]
    counts = {
        "num_shards": num_shards,
        "mean_similarity": round(float(similarities.mean(dtype=np.float64)), 6),
        "levels": levels,
    }
    kept = ImageSet(table, root=images.root)
    stage.finish(kept, removed_table({"uri": []}), counts, rows=vectors.numbers(np.arange(vectors.num_rows)))


def _facts(sizes: np.ndarray) -> dict[str, Any]:
    return {
        "clusters": len(sizes),
        "empty": int((sizes == 0).sum()),
        "smallest": int(sizes.min()),
        "median": float(np.median(sizes)),
        "largest": int(sizes.max()),
    }
