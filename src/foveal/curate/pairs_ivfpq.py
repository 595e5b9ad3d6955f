"""Pairs among many rows by an index of faiss: inverted lists of product-quantised codes, in memory.

A search gives candidates by their codes; exact similarities, from the vectors, decide. An index takes D / 4 + 8 bytes a
row or so in every worker, whatever its memory is bounded to, and no disk beside. How many lists a search reads is set,
and the recall measured, on rows whose true pairs are known (`pairs_recall`).

Source: Jegou et al. 2011, as in arXiv 2304.07193, appendix A.

Shapes: N rows, D width, k neighbours, P pairs.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.curate.dedup_copies import rows_of
from foveal.curate.pairs import BYTES_A_PAIR, BestPairs
from foveal.curate.pairs_recall import PAIRS, check_recall, measured_recall, recall_to_aim_at, run_truth, true_pairs
from foveal.curate.runner import Runner
from foveal.curate.stage import Stage, read_stage
from foveal.curate.vectors import Vectors
from foveal.features.batches import Progress
from foveal.features.index import evenly_drawn, import_faiss

INDEX = "index"
LEAST_ROWS = 1024  # with fewer there is nothing to train codes on
_ROWS_PER_LIST, _TRAIN_ROWS_PER_LIST, _LEAST_TRAIN_ROWS = 64, 48, 16_384
_NUMBERS_A_CODE = 4  # of a vector, in one byte
_ROWS_AT_A_TIME = 8192
_LISTS_WITHOUT_PAIRS = 8


def search_by_index(
    stage: Stage, runner: Runner, *, similarity: float, memory_bytes: int, progress: Progress | None
) -> tuple[int, dict[str, Any]]:
    """Search for the pairs of the pool, and return in how many shards they lie and what the summary says of it.

    Raises:
        FovealError: a recall below the least allowed, or faiss is not installed.
    """
    import_faiss()
    run_truth(stage, runner, similarity=similarity, memory_bytes=memory_bytes, progress=progress)
    runner.run(functools.partial(build_index, similarity=similarity), stage, INDEX, 1)
    num_shards = -(-len(rows_of(stage)) // stage.settings["shard_size"])
    task = functools.partial(search_index, similarity=similarity, memory_bytes=memory_bytes)
    runner.run(task, stage, PAIRS, num_shards, progress=progress)
    recall, num_measured = measured_recall(stage, num_shards)
    check_recall(stage, recall, num_measured)
    facts = {name: int(array[0]) for name, array in stage.load(INDEX, 0).items() if name.startswith("num_")}
    return num_shards, {"method": "ivfpq", **facts, "recall": recall, "num_pairs_measured": num_measured}


def build_index(folder: Path, shard: int, *, similarity: float) -> None:
    """Save an index of all rows, as bytes, and how many lists a search reads.

    Raises:
        FovealError: the rows that measure find too few of their pairs, also by reading all lists.
    """
    stage, faiss = read_stage(folder), import_faiss()
    vectors, rows = Vectors.of_sources(stage.sources), rows_of(stage)
    faiss.omp_set_num_threads(torch.get_num_threads())
    num_lists = max(1, min(round(4 * math.sqrt(len(rows))), len(rows) // _ROWS_PER_LIST))
    code_bytes = max(n for n in range(1, max(1, vectors.width // _NUMBERS_A_CODE) + 1) if vectors.width % n == 0)
    quantizer = faiss.IndexFlatIP(vectors.width)
    index = faiss.IndexIVFPQ(quantizer, vectors.width, num_lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # else it prints warnings
    index.train(vectors.take(rows[evenly_drawn(len(rows), max(_LEAST_TRAIN_ROWS, num_lists * _TRAIN_ROWS_PER_LIST))]))
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        index.add(vectors.take(rows[start : start + _ROWS_AT_A_TIME]))
    num_read = _num_to_read(_Search(stage, vectors, rows, index, similarity))
    arrays = {"num_lists": np.array([num_lists]), "num_lists_read": np.array([num_read])}
    stage.save(INDEX, shard, {"index": faiss.serialize_index(index), **arrays})


def search_index(folder: Path, shard: int, *, similarity: float, memory_bytes: int) -> None:
    """Save the edges of the rows of a shard: left, right (P,) int64 and similarity (P,) float64."""
    stage, faiss = read_stage(folder), import_faiss()
    vectors, rows = Vectors.of_sources(stage.sources), rows_of(stage)
    faiss.omp_set_num_threads(torch.get_num_threads())
    arrays, size = stage.load(INDEX, 0), stage.settings["shard_size"]
    search = _Search(stage, vectors, rows, faiss.deserialize_index(arrays["index"]), similarity)
    asking = rows[shard * size : (shard + 1) * size]
    max_pairs = memory_bytes // 4 // BYTES_A_PAIR
    stage.save(PAIRS, shard, search.pairs(asking, num_read=int(arrays["num_lists_read"][0]), max_pairs=max_pairs))


@dataclass(frozen=True)
class _Search:
    """An index, and what its rows are of."""

    stage: Stage
    vectors: Vectors
    rows: np.ndarray
    index: Any
    similarity: float

    def pairs(self, asking: np.ndarray, *, num_read: int, max_pairs: int) -> dict[str, np.ndarray]:
        """Return the pairs of some rows, as `BestPairs.end` does."""
        k = self.stage.settings["neighbours"]
        found = BestPairs(self.vectors, self.vectors, similarity=self.similarity, k=k, max_pairs=max_pairs)
        parameters = import_faiss().SearchParametersIVF(nprobe=num_read)
        num_candidates = min(2 * k + 32, len(self.rows))
        for start in range(0, len(asking), _ROWS_AT_A_TIME):
            some = asking[start : start + _ROWS_AT_A_TIME]
            scores, numbers = self.index.search(self.vectors.take(some), num_candidates, params=parameters)
            likely = (numbers >= 0) & (scores >= self.similarity / 2)  # codes are coarse
            found.add(np.repeat(some, likely.sum(axis=1)), self.rows[numbers[likely]])
        return found.end()


def _num_to_read(search: _Search) -> int:
    """Return how many lists a search reads, as the rows drawn need it."""
    left, right, is_setting = true_pairs(search.stage)
    num_lists, num_rows, min_recall = search.index.nlist, search.vectors.num_rows, search.stage.settings["min_recall"]

    def recall(chosen: np.ndarray, num_read: int) -> float:
        found = search.pairs(np.unique(left[chosen]), num_read=num_read, max_pairs=2**24)
        pairs = found["left"] * num_rows + found["right"]
        return float(np.isin(left[chosen] * num_rows + right[chosen], pairs).mean())

    if not is_setting.any():
        return min(_LISTS_WITHOUT_PAIRS, num_lists)
    num_read, wanted = 1, recall_to_aim_at(min_recall, int(is_setting.sum()))
    while num_read < num_lists and recall(is_setting, num_read) < wanted:
        num_read = min(num_lists, math.ceil(num_read * 1.4))
    if not is_setting.all():
        check_recall(search.stage, recall(~is_setting, num_read), int((~is_setting).sum()))
    return num_read
