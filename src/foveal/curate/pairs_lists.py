"""Pairs among many rows: each row is compared with the lists of rows whose centres are nearest to it.

Lists are the clusters of a spherical k-means of a sample. Rows are written again in the order of their lists, in the
type of rough scores, so that a list is read in one piece. A row is compared with the lists of the p centres nearest to
it. A pair is found where either of its rows reads the list of the other.

p is set, and the recall measured, on rows whose true pairs are known (`pairs_recall`).

Cost: 2 N L D operations for lists of N rows in L lists, N p / L * 2 N D for pairs, and 2 S N D for S rows drawn. With
L = 2 sqrt(N), everything grows as N^1.5.

Shapes: N rows, D width, k neighbours, L lists, p lists that a row reads, S rows drawn, P pairs.
"""

import functools
import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.curate.dedup_copies import rows_of
from foveal.curate.kmeans import assign, fit
from foveal.curate.pairs import (
    BYTES_A_PAIR,
    TILE,
    BestPairs,
    add_matches,
    least_bits,
    one_thread_each,
    padded_size,
    rough,
    rough_type,
    tiles,
)
from foveal.curate.pairs_recall import PAIRS, check_recall, measured_recall, recall_to_aim_at, run_truth, true_pairs
from foveal.curate.runner import Runner
from foveal.curate.stage import Stage, read_stage
from foveal.curate.vectors import Vectors
from foveal.features.batches import Progress
from foveal.features.index import evenly_drawn

logger = logging.getLogger(__name__)

LEAST_ROWS = 64  # with fewer, lists make no sense
CENTRES, HOMES, ORDER, LISTS = "centres", "homes", "order", "lists"
_TRAIN_ROWS_A_LIST, _LEAST_ROWS_A_LIST = 40, 16
_STEPS = 6  # of k-means
_LISTS_WITHOUT_PAIRS = 8  # read where no row drawn has a pair
_FEW_PAIRS = 100
_ROWS_AT_A_TIME = 8192


def search_by_lists(
    stage: Stage, runner: Runner, *, similarity: float, memory_bytes: int, progress: Progress | None
) -> tuple[int, dict[str, Any]]:
    """Search for the pairs of the pool, and return in how many shards they lie and what the summary says of it.

    Raises:
        FovealError: a recall below the least allowed.
    """
    num_rows, size = len(rows_of(stage)), stage.settings["shard_size"]
    run_truth(stage, runner, similarity=similarity, memory_bytes=memory_bytes, progress=progress)
    runner.run(find_centres, stage, CENTRES, 1)
    runner.run(find_homes, stage, HOMES, -(-num_rows // size), progress=progress)
    runner.run(order_rows, stage, ORDER, 1)
    num_shards = len(stage.load(ORDER, 0)["bounds"]) - 1
    if stage.missing(PAIRS, num_shards):
        runner.run(write_lists, stage, LISTS, num_shards, progress=progress)
        for shard in range(num_shards):
            stage.load(LISTS, shard)  # what reads them does not look whether they are whole
    task = functools.partial(search_lists, similarity=similarity, memory_bytes=memory_bytes)
    runner.run(task, stage, PAIRS, num_shards, progress=progress)
    centres = stage.load(CENTRES, 0)
    recall, num_measured = measured_recall(stage, num_shards)
    check_recall(stage, recall, num_measured)
    return num_shards, {
        "method": "lists",
        "num_lists": len(centres["centres"]),
        "num_lists_read": int(centres["num_read"][0]),
        "recall": recall,
        "num_pairs_measured": num_measured,
    }


def find_centres(folder: Path, shard: int) -> None:
    """Save the centres of the lists (L, D) float32, and how many of them a row reads.

    Raises:
        FovealError: the other rows drawn find too few of their pairs then.
    """
    stage = read_stage(folder)
    vectors, rows = Vectors.of_sources(stage.sources), rows_of(stage)
    num_lists = max(1, min(round(2 * math.sqrt(len(rows))), len(rows) // _LEAST_ROWS_A_LIST))
    sample = vectors.take(rows[evenly_drawn(len(rows), num_lists * _TRAIN_ROWS_A_LIST)])
    with one_thread_each():  # products so small gain little by more, and lose all beside other work
        centres = fit(sample, sample[evenly_drawn(len(sample), num_lists)], steps=_STEPS).centroids
    left, right, is_setting = true_pairs(stage)
    needed = _lists_needed(vectors, centres, left, right, stage.settings["neighbours"])
    num_read = min(num_lists, _num_to_read(needed[is_setting], stage.settings["min_recall"]))
    measuring = needed[~is_setting]
    check_recall(stage, float((measuring <= num_read).mean()) if len(measuring) else None, len(measuring))
    if num_read > num_lists / 4:
        logger.warning(
            "rows have to be compared with %d of %d lists to find their pairs: these vectors form no clusters, and an "
            "exact search takes about as long",
            num_read,
            num_lists,
        )
    stage.save(CENTRES, shard, {"centres": centres, "num_read": np.array([num_read])})


def find_homes(folder: Path, shard: int) -> None:
    """Save the list of each row of a shard, (n,) int32."""
    stage = read_stage(folder)
    vectors, centres = Vectors.of_sources(stage.sources), stage.load(CENTRES, 0)["centres"]
    size = stage.settings["shard_size"]
    rows = rows_of(stage)[shard * size : (shard + 1) * size]
    parts = np.split(rows, range(_ROWS_AT_A_TIME, len(rows), _ROWS_AT_A_TIME))
    with one_thread_each() as pool:
        homes = list(pool.map(lambda points: assign(points, centres).clusters, map(vectors.take, parts)))
    stage.save(HOMES, shard, {"home": np.concatenate(homes).astype(np.int32)})


def order_rows(folder: Path, shard: int) -> None:
    """Save the rows by list (N,) int64, where lists start (L + 1,), and at which lists shards start (shards + 1,)."""
    stage = read_stage(folder)
    rows, size = rows_of(stage), stage.settings["shard_size"]
    homes = np.concatenate([stage.load(HOMES, number)["home"] for number in range(-(-len(rows) // size))])
    num_lists = len(stage.load(CENTRES, 0)["centres"])
    starts = np.concatenate([[0], np.cumsum(np.bincount(homes, minlength=num_lists))])
    firsts = np.searchsorted(starts, np.arange(0, len(rows), size), side="right") - 1
    bounds = np.unique([0, *firsts, num_lists])
    stage.save(ORDER, shard, {"rows": rows[np.argsort(homes, kind="stable")], "starts": starts, "bounds": bounds})


def write_lists(folder: Path, shard: int) -> None:
    """Save the rough rows of the lists of a shard, (n, D), one list after another, each padded with rows of zeros."""
    stage = read_stage(folder)
    vectors, order = Vectors.of_sources(stage.sources), stage.load(ORDER, 0)
    lists = _Lists(stage, order)
    first, last = order["bounds"][shard : shard + 2]
    start, stop = order["starts"][[first, last]]
    places, rows = lists.places(first, last), order["rows"][start:stop]
    found = torch.zeros(lists.size(first, last), vectors.width, dtype=rough_type())
    for at in range(0, len(rows), _ROWS_AT_A_TIME):
        found[places[at : at + _ROWS_AT_A_TIME]] = rough(vectors.take(rows[at : at + _ROWS_AT_A_TIME]))
    stage.save(LISTS, shard, {"rows": _as_numpy(found)})


def search_lists(folder: Path, shard: int, *, similarity: float, memory_bytes: int) -> None:
    """Save the edges of the rows of the lists of a shard: left, right (P,) int64 and similarity (P,) float64."""
    stage = read_stage(folder)
    vectors, order = Vectors.of_sources(stage.sources), stage.load(ORDER, 0)
    centres = stage.load(CENTRES, 0)
    lists = _Lists(stage, order)
    first, last = order["bounds"][shard : shard + 2]
    k, num_pairs = stage.settings["neighbours"], memory_bytes // 4 // BYTES_A_PAIR
    found = BestPairs(vectors, vectors, similarity=similarity, k=k, max_pairs=num_pairs)
    least = least_bits(similarity, vectors.width)
    own, numbers = lists.all_of(first, last)
    reading, starts = _readers(vectors, numbers, centres["centres"], int(centres["num_read"][0]))
    buffers = threading.local()

    def compare(number: int) -> None:
        if not hasattr(buffers, "scores"):
            buffers.scores, buffers.rows = own.new_empty(TILE * TILE), own.new_empty(TILE, own.shape[1])
        rows, right = lists.padded(number)
        asking = reading[starts[number] : starts[number + 1]]
        for tile in asking.split(TILE):
            left_rows = buffers.rows[: padded_size(len(tile))]
            torch.index_select(own, 0, tile, out=buffers.rows[: len(tile)])
            left_rows[len(tile) :] = 0
            left = numbers[tile.numpy()]
            for begin, part in tiles(rows):
                add_matches(found, left, left_rows, right[begin : begin + TILE], part, least, buffers.scores)

    with one_thread_each() as pool:
        for _ in pool.map(compare, np.flatnonzero(np.diff(starts)).tolist()):
            pass
    stage.save(PAIRS, shard, found.end())


class _Lists:
    """The rough rows of lists, on the disk, each list padded."""

    def __init__(self, stage: Stage, order: dict[str, np.ndarray]) -> None:
        self._stage, self._bounds = stage, order["bounds"]
        self._rows, self._starts = order["rows"], order["starts"]
        self._padded = np.concatenate([[0], np.cumsum(padded_size(np.diff(self._starts)))])
        self._shards: dict[int, Tensor] = {}

    def size(self, first: int, last: int) -> int:
        """Return how many rows the file of lists first to last - 1 has."""
        return int(self._padded[last] - self._padded[first])

    def places(self, first: int, last: int) -> Tensor:
        """Return where in the file of these lists their rows lie, (n,) int64."""
        starts = self._starts[first : last + 1]
        shift = (self._padded[first:last] - self._padded[first]) - (starts[:-1] - starts[0])
        return torch.from_numpy(np.arange(starts[-1] - starts[0]) + np.repeat(shift, np.diff(starts)))

    def all_of(self, first: int, last: int) -> tuple[Tensor, np.ndarray]:
        """Return the rows (n, D) of the lists of one shard, and their numbers (n,) int64."""
        rows = self._file(first)[self.places(first, last)]
        return rows, self._rows[self._starts[first] : self._starts[last]]

    def padded(self, number: int) -> tuple[Tensor, np.ndarray]:
        """Return the rows of a list with rows of zeros behind them, and their numbers (n,) int64 without."""
        rows, first = self._file(number), self._padded[self._bounds[self._shard(number)]]
        start, stop = self._padded[number : number + 2] - first
        return rows[start:stop], self._rows[self._starts[number] : self._starts[number + 1]]

    def _shard(self, number: int) -> int:
        return int(np.searchsorted(self._bounds, number, side="right")) - 1

    def _file(self, number: int) -> Tensor:
        shard = self._shard(number)
        if shard not in self._shards:
            self._shards[shard] = _as_torch(self._stage.mapped(LISTS, shard, "rows"))
        return self._shards[shard]


def _readers(vectors: Vectors, numbers: np.ndarray, centres: np.ndarray, num_read: int) -> tuple[Tensor, np.ndarray]:
    """Return places of rows by the list that they read, and where each list starts among them (L + 1,).

    In float32 of the rows themselves: rough rows do not tell apart the centres among many nearly equal rows.
    """
    reading, right, first = threading.Lock(), _told_apart(centres), len(centres) - num_read

    def nearest(part: np.ndarray) -> np.ndarray:
        with reading:
            rows = vectors.take(part)
        scores = (torch.from_numpy(rows) @ right).numpy()
        return np.argpartition(scores, first, axis=1)[:, first:].astype(np.int32)  # a copy, that frees the rest

    parts = np.split(numbers, range(TILE, len(numbers), TILE))
    with one_thread_each() as pool:
        read = torch.from_numpy(np.concatenate(list(pool.map(nearest, parts)))).flatten()
    order = read.argsort(stable=True)
    counts = torch.bincount(read, minlength=len(centres)).numpy()
    return order // num_read, np.concatenate([[0], np.cumsum(counts)])


def _num_to_read(needed: np.ndarray, min_recall: float) -> int:
    """Return how many lists to read for the recall to aim at, from how many each pair of some rows needs."""
    if not len(needed):
        return _LISTS_WITHOUT_PAIRS
    wanted = recall_to_aim_at(min_recall, len(needed))
    if wanted >= 1:  # all of these pairs, and the fewer they are, the more beside
        return math.ceil(int(needed.max()) * (1 + min(1.0, _FEW_PAIRS / len(needed))))
    return int(np.quantile(needed, wanted, method="higher"))


def _lists_needed(vectors: Vectors, centres: np.ndarray, left: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Return (P,) how many lists rows must read for each pair to be found.

    A pair is found by either of its rows, so the less of both counts; but of a row that has k neighbours these may
    have others that are nearer, and the row has to find them itself.
    """
    right_side, needed = _told_apart(centres), np.empty(len(left), np.int64)
    has_all = np.unique_counts(left).counts[np.unique_inverse(left).inverse_indices] >= k
    for start in range(0, len(left), TILE):
        some = slice(start, start + TILE)
        scores = [torch.from_numpy(vectors.take(numbers[some])) @ right_side for numbers in (left, right)]
        homes = [one.argmax(dim=1, keepdim=True) for one in scores]
        own, other = ((one >= one.gather(1, home)).sum(dim=1) for one, home in zip(scores, homes[::-1], strict=True))
        needed[some] = torch.where(torch.from_numpy(has_all[some]), own, torch.minimum(own, other)).numpy()
    return needed


def _told_apart(centres: np.ndarray) -> Tensor:
    """Return (D, L) centres less their mean, which orders them alike and rounds less where they are near each other."""
    return torch.from_numpy((centres - centres.mean(axis=0, dtype=np.float64)).astype(np.float32)).T


def _as_numpy(rows: Tensor) -> np.ndarray:
    """Return rough rows in a type that numpy knows."""
    return rows.view(torch.int16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()


def _as_torch(array: np.ndarray) -> Tensor:
    """Return what `_as_numpy` was given."""
    rows = torch.from_numpy(array)
    return rows.view(torch.bfloat16) if rows.dtype == torch.int16 else rows
