"""How many of the true pairs a search finds that does not compare all rows: measured on rows drawn evenly.

The true pairs of these are found by comparing them with all rows. Those of the even ones set the effort of a search,
those of the odd ones measure it.

Shapes: S rows drawn, P pairs.
"""

import functools
import math
from pathlib import Path

import numpy as np

from foveal.curate.dedup_copies import rows_of
from foveal.curate.pairs import search_all
from foveal.curate.runner import Runner
from foveal.curate.stage import Stage, read_stage
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.index import evenly_drawn

TRUTH, PAIRS = "truth", "pairs"
_DRAWN_ROWS, _DRAWN_ROWS_A_SHARD = 4096, 2048


def run_truth(stage: Stage, runner: Runner, *, similarity: float, memory_bytes: int, progress: Progress | None) -> None:
    """Find the true pairs of the rows drawn."""
    task = functools.partial(find_truth, similarity=similarity, memory_bytes=memory_bytes)
    runner.run(task, stage, TRUTH, _num_shards(len(rows_of(stage))), progress=progress)


def find_truth(folder: Path, shard: int, *, similarity: float, memory_bytes: int) -> None:
    """Save the true pairs of some of the rows drawn, as `search_all` returns them."""
    stage = read_stage(folder)
    vectors, rows = Vectors.of_sources(stage.sources), rows_of(stage)
    drawn = drawn_rows(rows)[shard * _DRAWN_ROWS_A_SHARD : (shard + 1) * _DRAWN_ROWS_A_SHARD]
    k = stage.settings["neighbours"]
    found = search_all(vectors, drawn, vectors, rows, similarity=similarity, k=k, memory_bytes=memory_bytes)
    stage.save(TRUTH, shard, found)


def drawn_rows(rows: np.ndarray) -> np.ndarray:
    """Return (S,) int64, the rows by which recall is measured."""
    return rows[evenly_drawn(len(rows), _DRAWN_ROWS)]


def _num_shards(num_rows: int) -> int:
    """Return in how many shards the true pairs of the rows drawn lie."""
    return -(-min(num_rows, _DRAWN_ROWS) // _DRAWN_ROWS_A_SHARD)


def true_pairs(stage: Stage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return left and right (P,) int64 of the true pairs of the rows drawn, and (P,) bool: is for setting."""
    rows = rows_of(stage)
    found = [stage.load(TRUTH, shard) for shard in range(_num_shards(len(rows)))]
    left, right = (np.concatenate([part[name] for part in found]) for name in ("left", "right"))
    return left, right, np.searchsorted(drawn_rows(rows), left) % 2 == 0


def measured_recall(stage: Stage, num_shards: int) -> tuple[float | None, int]:
    """Return which share of the true pairs is among the edges, of those that set nothing, and how many these are."""
    left, right, is_setting = true_pairs(stage)
    left, right = left[~is_setting], right[~is_setting]
    is_found = np.zeros(len(left), bool)
    total = Vectors.of_sources(stage.sources).num_rows
    wanted = np.minimum(left, right) * total + np.maximum(left, right)
    for shard in range(num_shards if len(left) else 0):
        edges = stage.load(PAIRS, shard)
        ends = np.minimum(edges["left"], edges["right"]) * total + np.maximum(edges["left"], edges["right"])
        is_found |= np.isin(wanted, ends)
    return (float(is_found.mean()) if len(left) else None), len(left)


def check_recall(stage: Stage, recall: float | None, num_measured: int) -> None:
    """Refuse a recall that is below the least allowed."""
    least = stage.settings["min_recall"]
    if recall is not None and recall < least:
        raise FovealError(
            f"the search finds {recall:.4f} of {num_measured} true pairs of rows drawn evenly, below min_recall="
            f"{least}; search exactly, or accept less, in another --out"
        )


def recall_to_aim_at(min_recall: float, num_pairs: int) -> float:
    """Return what the rows that set the effort must find, so that others find the least allowed.

    No more than half the misses allowed, and where pairs are few, the least recall three standard errors below.
    """
    return min(1.0, max((1 + min_recall) / 2, min_recall + 3 * math.sqrt(min_recall * (1 - min_recall) / num_pairs)))
