"""The first steps of dedup: rows that are equal to the bit are found by hashes, so that only one of them is searched.

Shapes: N rows, D width.
"""

from pathlib import Path

import numpy as np

from foveal.curate.stage import Stage, read_stage
from foveal.curate.vectors import Vectors

COPIES, DISTINCT = "copies", "distinct"
_ROWS_AT_A_TIME = 4096


def hash_rows(folder: Path, shard: int) -> None:
    """Save a hash of each row of a shard: (n,) uint64, 0 for rows of zeros, which resemble nothing."""
    stage = read_stage(folder)
    vectors = Vectors.of_sources(stage.sources)
    start = shard * stage.settings["shard_size"]
    stop = min(start + stage.settings["shard_size"], vectors.num_rows)
    factors = np.random.default_rng(0).integers(2**63, size=vectors.width, dtype=np.uint64) << np.uint64(1)
    hashes = np.empty(stop - start, np.uint64)
    for first in range(start, stop, _ROWS_AT_A_TIME):
        rows = vectors.read(first, min(first + _ROWS_AT_A_TIME, stop))
        bits = rows.view(np.uint32).astype(np.uint64)
        bits *= factors + np.uint64(1)  # odd: no bit is lost
        found = bits.sum(axis=1)  # modulo 2^64
        found[(found == 0) & rows.any(axis=1)] = 1
        found[~rows.any(axis=1)] = 0
        hashes[first - start : first - start + len(found)] = found
    stage.save(COPIES, shard, {"hash": hashes})


def find_distinct(folder: Path, shard: int) -> None:
    """Save rows, (n,) int64, without those of zeros and equals of earlier ones, and pairs of these: copy, original."""
    stage = read_stage(folder)
    vectors = Vectors.of_sources(stage.sources)
    num_shards = -(-vectors.num_rows // stage.settings["shard_size"])
    hashes = np.concatenate([stage.load(COPIES, shard)["hash"] for shard in range(num_shards)])
    order = np.argsort(hashes, kind="stable")
    starts = np.concatenate([[True], hashes[order][1:] != hashes[order][:-1]])
    originals = np.empty_like(order)
    originals[order] = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    copies = np.flatnonzero((originals != np.arange(len(order))) & (hashes != 0))
    copies = copies[_are_equal(vectors, copies, originals[copies])]
    is_distinct = hashes != 0
    is_distinct[copies] = False
    arrays = {"rows": np.flatnonzero(is_distinct), "copy": copies, "original": originals[copies]}
    stage.save(DISTINCT, shard, arrays)


def _are_equal(vectors: Vectors, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (P,) bool: which pairs of rows are equal, not only their hashes."""
    equal = np.zeros(len(left), bool)
    for start in range(0, len(left), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        distinct, places = np.unique(right[some], return_inverse=True)
        equal[some] = (vectors.take(left[some]) == vectors.take(distinct)[places]).all(axis=1)
    return equal


def rows_of(stage: Stage) -> np.ndarray:
    """Return (n,) int64, the rows to search: distinct, and not of zeros."""
    return stage.load(DISTINCT, 0)["rows"]
