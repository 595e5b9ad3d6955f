"""The steps of dedup that look for pairs: among the rows of the pool, and of these with evaluation images."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from foveal.curate import pairs_ivfpq, pairs_lists
from foveal.curate.dedup_copies import rows_of
from foveal.curate.pairs import search_all
from foveal.curate.pairs_ivfpq import search_by_index
from foveal.curate.pairs_lists import search_by_lists
from foveal.curate.runner import Runner
from foveal.curate.stage import Stage, read_stage
from foveal.curate.vectors import Vectors
from foveal.features.batches import Progress

PAIRS, HELD_OUT, REFERENCES = "pairs", "held_out", "keep_out"


def find_pairs(
    stage: Stage, runner: Runner, *, memory_bytes: int, progress: Progress | None
) -> tuple[int, dict[str, Any]]:
    """Search for the pairs of the pool, and return in how many shards they lie and what the summary says of it."""
    num_rows, similarity = len(rows_of(stage)), searched_similarity(stage)
    if stage.settings["search"] == "lists" and num_rows >= pairs_lists.LEAST_ROWS:
        return search_by_lists(stage, runner, similarity=similarity, memory_bytes=memory_bytes, progress=progress)
    if stage.settings["search"] == "ivfpq" and num_rows >= pairs_ivfpq.LEAST_ROWS:
        return search_by_index(stage, runner, similarity=similarity, memory_bytes=memory_bytes, progress=progress)
    num_shards = -(-num_rows // stage.settings["shard_size"])
    task = functools.partial(search_exactly, memory_bytes=memory_bytes)
    runner.run(task, stage, PAIRS, num_shards, progress=progress)
    return num_shards, {"method": "exact"}


def search_exactly(folder: Path, shard: int, *, memory_bytes: int) -> None:
    """Save the edges of the rows of a shard: left, right (P,) int64 and similarity (P,) float64."""
    stage = read_stage(folder)
    vectors, rows = Vectors.of_sources(stage.sources), rows_of(stage)
    found = search_all(
        vectors,
        _part(rows, shard, stage),
        vectors,
        rows,
        similarity=searched_similarity(stage),
        k=stage.settings["neighbours"],
        memory_bytes=memory_bytes,
    )
    stage.save(PAIRS, shard, found)


def search_held_out(folder: Path, shard: int, *, memory_bytes: int) -> None:
    """Save of the rows of a shard the most similar evaluation image, where there is one; arrays as edges have them."""
    stage = read_stage(folder)
    vectors, references = Vectors.of_sources(stage.sources), Vectors.of_sources(stage.sources, REFERENCES)
    found = search_all(
        vectors,
        _part(rows_of(stage), shard, stage),
        references,
        np.arange(references.num_rows),
        similarity=stage.settings["keep_out_similarity"],
        k=1,
        memory_bytes=memory_bytes,
    )
    stage.save(HELD_OUT, shard, found)


def searched_similarity(stage: Stage) -> float:
    """Return the least similarity that the pairs of the pool are needed for."""
    similarity: float = stage.settings["similarity"]
    return min(similarity, stage.settings["keep_out_similarity"]) if REFERENCES in stage.inputs else similarity


def _part(rows: np.ndarray, shard: int, stage: Stage) -> np.ndarray:
    size = stage.settings["shard_size"]
    return rows[shard * size : (shard + 1) * size]
