"""Retrieval: the images of a pool that resemble those of query sets, by single images or by whole clusters.

Source: arXiv 2304.07193, section 3 and appendix A.4. Large query sets: the N nearest pool images of each query. Small
ones: M images of every cluster of the pool that holds more than t queries, up to a cap for the set.

Shapes: Q queries, N pool rows, D width, K candidates of a query.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import torch

from foveal.curate.cluster import Clusters, load_clusters
from foveal.curate.runner import LOCAL, Runner
from foveal.curate.stage import Stage, open_stage, read_stage, removed_table
from foveal.curate.vectors import Vectors, check_same_descriptor
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.search import search_exact
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 8192

Mode = Literal["auto", "sample", "cluster"]


@dataclass(frozen=True)
class RetrieveSettings:
    """What is retrieved; the defaults are the paper's.

    Attributes:
        mode: "sample" (nearest images of each query), "cluster" (images of clusters that hold queries), or "auto":
            sample for query sets of more than `large` images, cluster for others.
        large: images from which on a query set is large.
        per_query: N, images for each query of a large set.
        per_cluster: M, images of each cluster.
        min_queries: t, clusters with more queries than this are taken.
        cap: images for one query set at most.
        level: of the clusters, from 1, the finest; the paper has one.
        candidates: neighbours looked at for each query, as a multiple of `per_query`: where the nearest went to another
            query, the next one is taken.
        seed: of the random choice in clusters and under the cap.
        query_rows: queries in a shard.
        pool_rows: rows of the pool in a shard.
    """

    mode: Mode = "auto"
    large: int = 1_000_000
    per_query: int = 4
    per_cluster: int = 10_000
    min_queries: int = 3
    cap: int = 1_000_000
    level: int = 1
    candidates: int = 4
    seed: int = 0
    query_rows: int = 16_384
    pool_rows: int = 1_048_576

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise FovealError(f"mode={self.mode!r} of retrieval; choose {', '.join(get_args(Mode))}")
        smallest = {"min_queries": 0, "seed": 0, "large": 0}
        for name, value in asdict(self).items():
            if name != "mode" and value < smallest.get(name, 1):
                raise FovealError(f"{name}={value} of retrieval; choose {smallest.get(name, 1)} or more")

    def mode_of(self, num_queries: int) -> Literal["sample", "cluster"]:
        """Return how a query set of this size is served."""
        if self.mode != "auto":
            return self.mode
        return "sample" if num_queries > self.large else "cluster"


PUBLISHED = RetrieveSettings()


class Retrieved(NamedTuple):
    """Rows of the pool, each with the query that it was taken for.

    Attributes:
        rows: (R,) int64, distinct.
        queries: (R,) int64, the query of each: the most similar one that it was taken for.
        scores: (R,) float32, cosine to that query.
    """

    rows: np.ndarray
    queries: np.ndarray
    scores: np.ndarray


def run_retrieve(
    pool: Vectors,
    query_sets: Mapping[str, Vectors],
    *,
    out: str | Path,
    clusters: str | Path | None = None,
    settings: RetrieveSettings = PUBLISHED,
    runner: Runner = LOCAL,
    progress: Progress | None = None,
) -> Stage:
    """Keep the images of a pool that query sets ask for.

    An image is taken once, for the first query set in order that asks for it. The kept images have the columns
    query_set, method, query (its uri), score (cosine to it) and, by clusters, cluster.

    Args:
        pool: what is searched.
        query_sets: by name, in order.
        out: folder of the stage.
        clusters: folder of a finished `cluster` stage of the same pool; needed by cluster-based retrieval.
        settings: what is retrieved.
        runner: where shards run.
        progress: called with (shards done, shards in all), for each query set.

    Returns:
        The finished stage; its summary counts, for each query set, queries, images retrieved, and how many were asked
        for and not to be had.

    Raises:
        FovealError: other descriptors, clusters of another pool or none where they are needed, or NaN in vectors.
    """
    for queries in query_sets.values():
        check_same_descriptor(pool, queries)
    modes = {name: settings.mode_of(queries.num_rows) for name, queries in query_sets.items()}
    inputs = {"pool": pool.hash, **{f"queries {name}": queries.hash for name, queries in query_sets.items()}}
    sources = pool.sources("pool")
    for number, queries in enumerate(query_sets.values()):
        sources |= queries.sources(f"queries{number}")
    if "cluster" in modes.values():
        inputs["clusters"] = _check_clusters(clusters, pool, settings, modes)
        sources["clusters"] = str(clusters)
    stage = open_stage(out, "retrieve", settings=asdict(settings), inputs=inputs, sources=sources)
    if stage.summary is not None:
        return stage
    taken = np.zeros(pool.num_rows, bool)
    found: dict[str, Retrieved] = {}
    in_clusters: dict[str, np.ndarray] = {}
    counts: dict[str, Any] = {}
    for number, (name, queries) in enumerate(query_sets.items()):
        if modes[name] == "sample":
            found[name], asked = _by_sample(stage, number, pool, queries, taken, settings, runner, progress)
        else:
            found[name], in_clusters[name], asked = _by_cluster(Path(str(clusters)), pool, queries, taken, settings)
        taken[found[name].rows] = True
        num_found = len(found[name].rows)
        counts[name] = {
            "queries": queries.num_rows,
            "method": modes[name],
            "retrieved": num_found,
            "missing": max(0, asked - num_found),
        }
        logger.info("%s: %d images for %d queries, %s-based", name, num_found, queries.num_rows, modes[name])
    if not taken.any():
        raise FovealError(
            f"no image of the pool was retrieved for {', '.join(query_sets)}: no cluster holds more than "
            f"min_queries={settings.min_queries} queries; lower that, make fewer clusters, or set mode=sample"
        )
    rows, kept = _kept(pool, query_sets, found, modes, in_clusters)
    stage.finish(kept, _not_retrieved(pool, np.flatnonzero(~taken)), {"query_sets": counts}, rows=pool.numbers(rows))
    return stage


def _check_clusters(
    folder: str | Path | None, pool: Vectors, settings: RetrieveSettings, modes: Mapping[str, str]
) -> str:
    """Return the stamp of the clusters; FovealError where there are none, or of other vectors, or too few levels."""
    first = next(name for name, mode in modes.items() if mode == "cluster")
    if folder is None:
        raise FovealError(
            f"retrieval for {first} needs clusters of the pool; make them with foveal cluster and give --clusters, or "
            "set mode=sample"
        )
    found = load_clusters(folder)
    if settings.level > found.num_levels:
        raise FovealError(f"level={settings.level} of {folder}, which has levels 1 to {found.num_levels}")
    stage = found.stage
    if stage.inputs.get("vectors") != pool.hash:
        raise FovealError(f"{folder} holds clusters of other vectors than {pool.path}; cluster these")
    return stage.stamp


def _by_sample(
    stage: Stage,
    number: int,
    pool: Vectors,
    queries: Vectors,
    taken: np.ndarray,
    settings: RetrieveSettings,
    runner: Runner,
    progress: Progress | None,
) -> tuple[Retrieved, int]:
    """Return the nearest images of each query, and how many were asked for."""
    step = f"nearest{number}"
    num_parts = -(-pool.num_rows // settings.pool_rows)
    num_shards = -(-queries.num_rows // settings.query_rows) * num_parts
    runner.run(functools.partial(nearest_of_shard, number=number), stage, step, num_shards, progress=progress)
    k = min(settings.per_query * settings.candidates, pool.num_rows)
    merged = [_merged(stage, step, range(first, first + num_parts), k=k) for first in range(0, num_shards, num_parts)]
    similarities, rows = (np.concatenate(arrays) for arrays in zip(*merged, strict=True))
    found = share_out(similarities, rows, per_query=settings.per_query, taken=taken)
    return found, settings.per_query * queries.num_rows


def nearest_of_shard(folder: Path, shard: int, *, number: int) -> None:
    """Find the nearest rows of one part of the pool for one part of a query set; a shard of the steps nearest*."""
    stage = read_stage(folder)
    settings = RetrieveSettings(**stage.settings)
    pool = Vectors.of_sources(stage.sources, "pool")
    queries = Vectors.of_sources(stage.sources, f"queries{number}")
    place, part = divmod(shard, -(-pool.num_rows // settings.pool_rows))
    first = part * settings.pool_rows
    database = pool.database(first, min(first + settings.pool_rows, pool.num_rows))
    start = place * settings.query_rows
    block = torch.from_numpy(queries.read(start, min(start + settings.query_rows, queries.num_rows)))
    k = min(settings.per_query * settings.candidates, database.num_rows)
    found = search_exact(block, database, k=k)
    stage.save(
        f"nearest{number}",
        shard,
        {"similarities": found.similarities.numpy(), "rows": found.indices.numpy() + first},
    )


def _merged(stage: Stage, step: str, shards: range, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of one part of the queries, from those in every part of the pool."""
    similarities, rows = np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
    for shard in shards:
        found = stage.load(step, shard)
        if shard == shards[0]:
            similarities, rows = found["similarities"], found["rows"]
        else:
            similarities = np.concatenate([similarities, found["similarities"]], axis=1)
            rows = np.concatenate([rows, found["rows"]], axis=1)
        order = np.lexsort((rows, -similarities), axis=1)[:, :k]
        similarities = np.take_along_axis(similarities, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
    return similarities, rows


def share_out(similarities: np.ndarray, rows: np.ndarray, *, per_query: int, taken: np.ndarray) -> Retrieved:
    """Give each query up to `per_query` rows of its own: a row that several want goes to the most similar.

    A query that loses a row goes on to its next nearest. This is the stable assignment, found by deferred acceptance:
    no query and row would both rather have each other. Of equal similarities the lower query has the row.

    Args:
        similarities: (Q, K) float, falling.
        rows: (Q, K) int64, the candidates of each query, distinct within a query.
        per_query: rows for each query.
        taken: (N,) bool, rows that are not to be had.
    """
    candidates, places = np.unique(rows, return_inverse=True)
    places = places.reshape(rows.shape)
    holder = np.full(len(candidates), -1, np.int64)
    score = np.full(len(candidates), -np.inf, np.float32)
    score[taken[candidates]] = np.inf  # nobody is more similar
    position, num_held = np.zeros((2, len(rows)), np.int64)
    while len(active := np.flatnonzero((num_held < per_query) & (position < rows.shape[1]))):
        wanted, similar = places[active, position[active]], similarities[active, position[active]]
        position[active] += 1
        better = (similar > score[wanted]) | ((similar == score[wanted]) & (active < holder[wanted]))
        asking, wanted, similar = active[better], wanted[better], similar[better]
        order = np.lexsort((asking, -similar, wanted))
        first = order[np.diff(wanted[order], prepend=-1) != 0]  # the best of those that want the same row
        asking, wanted, similar = asking[first], wanted[first], similar[first]
        np.subtract.at(num_held, holder[wanted][holder[wanted] >= 0], 1)
        holder[wanted], score[wanted] = asking, similar
        num_held[asking] += 1
    held = holder >= 0
    return Retrieved(candidates[held], holder[held], score[held])


def _by_cluster(
    folder: Path, pool: Vectors, queries: Vectors, taken: np.ndarray, settings: RetrieveSettings
) -> tuple[Retrieved, np.ndarray, int]:
    """Return images of the clusters that hold queries, the cluster of each, and how many were asked for."""
    clusters = load_clusters(folder)
    members = clusters.assignment(settings.level)
    of_queries = _clusters_of(clusters, queries, settings.level)
    chosen = np.flatnonzero(np.bincount(of_queries) > settings.min_queries)
    order = np.argsort(members, kind="stable")
    bounds = np.searchsorted(members[order], [chosen, chosen + 1])
    picked = []
    for cluster, start, stop in zip(chosen.tolist(), *bounds.tolist(), strict=True):
        free = order[start:stop][~taken[order[start:stop]]]
        generator = np.random.default_rng([settings.seed, cluster])
        picked.append(_drawn(generator, free, settings.per_cluster))
    rows = np.sort(np.concatenate([*picked, np.empty(0, np.int64)]))
    rows = _drawn(np.random.default_rng(settings.seed), rows, settings.cap)
    found = _with_nearest_query(pool, queries, rows, members[rows], of_queries)
    return found, members[rows], min(settings.cap, settings.per_cluster * len(chosen))


def _drawn(generator: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the rows at random, ascending, or all where there are no more."""
    return rows if len(rows) <= count else np.sort(generator.choice(rows, count, replace=False))


def _clusters_of(clusters: Clusters, queries: Vectors, level: int) -> np.ndarray:
    """Return (Q,) the cluster of each query."""
    blocks = range(0, queries.num_rows, _ROWS_AT_A_TIME)
    return np.concatenate(
        [
            clusters.assign(queries.read(start, min(start + _ROWS_AT_A_TIME, queries.num_rows)), level)
            for start in blocks
        ]
    )


def _with_nearest_query(
    pool: Vectors, queries: Vectors, rows: np.ndarray, clusters: np.ndarray, of_queries: np.ndarray
) -> Retrieved:
    """Find for each row the most similar of the queries in its cluster."""
    nearest, scores = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for cluster in np.unique(clusters):
        numbers = np.flatnonzero(of_queries == cluster)
        here = np.flatnonzero(clusters == cluster)
        asked = queries.take(numbers)
        for start in range(0, len(here), _ROWS_AT_A_TIME):
            some = here[start : start + _ROWS_AT_A_TIME]
            similarities = pool.take(rows[some]) @ asked.T
            best = similarities.argmax(axis=1)
            nearest[some] = numbers[best]
            scores[some] = similarities[np.arange(len(some)), best]
    return Retrieved(rows, nearest, scores)


def _kept(
    pool: Vectors,
    query_sets: Mapping[str, Vectors],
    found: Mapping[str, Retrieved],
    modes: Mapping[str, str],
    clusters: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, ImageSet]:
    """Return the rows retrieved, ascending, and their images with what they were retrieved for."""
    parts = []
    for name, one in found.items():
        uris = query_sets[name].images().rows.column("uri")
        parts.append(
            pa.table(
                {
                    "row": one.rows,
                    "query_set": pa.array([name] * len(one.rows), pa.string()),
                    "method": pa.array([f"{modes[name]}-based"] * len(one.rows), pa.string()),
                    "query": uris.take(pa.array(one.queries)),
                    "score": pa.array(one.scores, pa.float32()),
                    "cluster": pa.array(clusters[name], pa.int64())
                    if name in clusters
                    else pa.nulls(len(one.rows), pa.int64()),
                }
            )
        )
    provenance = pa.concat_tables(parts).sort_by("row")
    rows = provenance.column("row").to_numpy()
    images = pool.images().subset(rows)
    table = images.rows
    for name in provenance.column_names[1:]:
        table = table.append_column(name, provenance.column(name))
    return rows, ImageSet(table, root=images.root)


def _not_retrieved(pool: Vectors, rows: np.ndarray) -> pa.Table:
    uris = pool.images().rows.column("uri").take(pa.array(rows))
    return removed_table({"uri": uris, "reason": ["not retrieved"] * len(rows)})
