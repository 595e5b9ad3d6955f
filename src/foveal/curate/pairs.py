"""The most similar others of each row, above a similarity: rough scores find candidates, exact ones decide.

Rough scores are products in bf16 where the processor has instructions for it, else in float32. What is further below
the similarity asked for than their error can be is dropped; the rest is scored again in sums that are exact
(`features/fixed_point.py`). So neither precision nor blocks nor threads change the answer. Each product runs on one
thread, several at the same time: as fast as one product on all threads, and equal to the bit for any number of them.

Shapes: N rows, D width, k neighbours, P pairs; a block of n rows is compared with a block of m.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from foveal.curate.vectors import Vectors
from foveal.engine.cpu import has_bf16
from foveal.errors import FovealError
from foveal.features.fixed_point import bits_of_index, keys, read_keys, scale, whole_rows
from foveal.features.search import error_bound

Size = TypeVar("Size", int, np.ndarray)

DEFAULT_MEMORY_BYTES = 2 * 2**30  # of a worker
TILE = 1024  # rows of a product: two of them and their scores fit into a cache of 2 MB a core
_MULTIPLE = 64  # divides TILE
_BLOCK_ROWS, _LEAST_BLOCK_ROWS = 8 * TILE, 256  # read at a time
_BYTES_A_NUMBER = 16  # of a block while it is read: float32 twice, float64 in part, bf16
_DENSE = 1 / 64  # of a tile's scores: with more candidates, an exact product of all is cheaper than pair by pair
_PAIRS_AT_A_TIME = 4096
BYTES_A_PAIR = 96  # while pairs are merged: number and key, concatenated and sorted


class BestPairs:
    """Of each row at left its k most similar rows at right, from candidates that come in any order.

    Args:
        left: vectors whose rows ask.
        right: vectors whose rows answer; the same object where a row is not to find itself.
        similarity: the least to keep, in exact arithmetic.
        k: to keep of each row at left; of equal similarities the lower row numbers.
        max_pairs: to gather before all but the best are dropped.
    """

    def __init__(self, left: Vectors, right: Vectors, *, similarity: float, k: int, max_pairs: int) -> None:
        self._left, self._right, self._k, self._max_pairs = left, right, k, max_pairs
        self._bits = bits_of_index(right.num_rows)
        self._least = round(similarity * scale(self._bits))
        self._gathered: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_gathered = 0
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0
        self._lock = threading.Lock()
        self.reading = threading.Lock()  # for whoever reads the same vectors meanwhile

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Take candidates: (P,) row numbers at left and at right; no pair twice. They are scored when they are many."""
        with self._lock:
            self._waiting.append((left, right))
            self._num_waiting += len(left)
            if self._num_waiting < _PAIRS_AT_A_TIME:
                return
            waiting, self._waiting, self._num_waiting = self._waiting, [], 0
        self._score(waiting)

    def add_all(self, left: np.ndarray, right: np.ndarray) -> None:
        """Take every pair of (n,) rows at left and (m,) at right as candidates."""
        left_rows, left_lengths = self._whole(self._left, left)
        right_rows, right_lengths = self._whole(self._right, right)
        similarities = (left_rows @ right_rows.T).div_(left_lengths[:, None] * right_lengths)
        found = keys(similarities, torch.from_numpy(right), self._bits)
        best = found.topk(min(self._k + 1, len(right)), dim=1).values  # one more: a row itself
        self._take_in(np.repeat(left, best.shape[1]), best.flatten().numpy())

    def end(self) -> dict[str, np.ndarray]:
        """Return left and right (P,) int64 and similarity (P,) float64, by left, the most similar first."""
        self._score(self._waiting)
        self._merge()
        left, found = self._gathered[0]
        similarity, right = read_keys(torch.from_numpy(found), self._bits)
        return {"left": left, "right": right.numpy(), "similarity": similarity.numpy()}

    def _score(self, waiting: list[tuple[np.ndarray, np.ndarray]]) -> None:
        if not waiting:
            return
        left, right = map(np.concatenate, zip(*waiting, strict=True))
        for start in range(0, len(left), _PAIRS_AT_A_TIME):
            some, others = left[start : start + _PAIRS_AT_A_TIME], right[start : start + _PAIRS_AT_A_TIME]
            left_rows, left_lengths = self._whole(self._left, some)
            right_rows, right_lengths = self._whole(self._right, others)
            similarities = (left_rows * right_rows).sum(dim=1).div_(left_lengths * right_lengths)
            self._take_in(some, keys(similarities, torch.from_numpy(others), self._bits).numpy())

    def _whole(self, vectors: Vectors, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        distinct, places = np.unique(numbers, return_inverse=True)
        with self.reading:
            rows = vectors.take(distinct)
        whole, lengths = whole_rows(torch.from_numpy(rows))
        return whole[places], lengths[places]

    def _take_in(self, left: np.ndarray, found: np.ndarray) -> None:
        wanted = (found >> self._bits) >= self._least
        if self._left is self._right:
            wanted &= (~found & (2**self._bits - 1)) != left
        with self._lock:
            self._gathered.append((left[wanted], found[wanted]))
            self._num_gathered += int(wanted.sum())
            if self._num_gathered > self._max_pairs:
                self._merge()

    def _merge(self) -> None:
        """Keep the best of what has been gathered."""
        none = np.empty(0, np.int64)
        left, found = map(np.concatenate, zip((none, none), *self._gathered, strict=True))
        order = np.lexsort((~found, left))
        left, found = left[order], found[order]
        best = np.arange(len(left)) - np.searchsorted(left, left) < self._k
        self._gathered, self._num_gathered = [(left[best], found[best])], int(best.sum())
        self._max_pairs = max(self._max_pairs, 2 * self._num_gathered)


def search_all(
    left: Vectors,
    left_rows: np.ndarray,
    right: Vectors,
    right_rows: np.ndarray,
    *,
    similarity: float,
    k: int,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> dict[str, np.ndarray]:
    """Compare some rows with all others, and return what `BestPairs.end` does.

    Cost: 2 n m D operations, and one pass over the rows at right.

    Args:
        left: vectors whose rows ask.
        left_rows: (n,) int64, which.
        right: vectors whose rows answer; the same object where a row is not to find itself.
        right_rows: (m,) int64, which.
        similarity: the least to keep, above 0.
        k: to keep of each row at left.
        memory_bytes: about what this may take, beside what the operating system keeps of files.

    Raises:
        FovealError: too little memory for so many rows at left, or a row with NaN.
    """
    num_threads = torch.get_num_threads()
    size = block_rows(len(left_rows), left.width, num_threads, memory_bytes)
    found = BestPairs(left, right, similarity=similarity, k=k, max_pairs=memory_bytes // 4 // BYTES_A_PAIR)
    least = least_bits(similarity, left.width)
    asking = torch.cat([rough(left.take(part)) for part in _split(left_rows, _BLOCK_ROWS)])

    def compare(block: np.ndarray) -> None:
        with found.reading:
            rows = right.take(block)
        answering = rough(rows)
        scores = answering.new_empty(TILE * TILE)
        for first, left_tile in tiles(asking):
            asked = left_rows[first : first + len(left_tile)]
            for start, tile in tiles(answering):
                add_matches(found, asked, left_tile, block[start : start + len(tile)], tile, least, scores)

    with one_thread_each() as pool:
        for _ in pool.map(compare, _split(right_rows, size)):
            pass
    return found.end()


def rough(rows: np.ndarray) -> Tensor:
    """Return (n, D) rows of unit length in the type of rough scores."""
    return torch.from_numpy(rows).to(rough_type())


def rough_type() -> torch.dtype:
    """Return the type of rough scores: bf16, or float32 where that is as fast."""
    return torch.bfloat16 if has_bf16() else torch.float32


def least_bits(similarity: float, width: int) -> int:
    """Return the bits of the least rough score that may belong to a similarity, as a whole number.

    Above 0, the order of floats is that of their bits; the maximum of whole numbers takes a tenth of the time.

    Raises:
        FovealError: the similarity is within the error of rough scores.
    """
    dtype = rough_type()
    limit = similarity - error_bound("bf16" if dtype == torch.bfloat16 else "fp32", width)
    if limit <= 0:
        raise FovealError(f"a similarity of {similarity} is too low to search for; choose at least 0.05")
    below = torch.nextafter(torch.tensor(limit, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    return int(below.view(_whole_numbers(dtype)))


def add_matches(
    found: BestPairs,
    left: np.ndarray,
    left_rows: Tensor,
    right: np.ndarray,
    right_rows: Tensor,
    least: int,
    memory: Tensor,
) -> None:
    """Add the pairs of two blocks whose rough scores are high enough.

    PyTorch generates code for every shape of a product, which takes as long as the product: where shapes vary, rows
    of zeros are to be added up to `padded_size`.

    Args:
        found: takes them.
        left: (n,) numbers of the rows at left.
        left_rows: these, rough, (n, D) or padded; at most TILE.
        right: (m,) numbers of the rows at right.
        right_rows: these, rough, (m, D) or padded; at most TILE.
        least: of `least_bits`.
        memory: TILE * TILE numbers of the type of the rows, overwritten: fresh memory would take as long as a product.
    """
    shape = (len(left_rows), len(right_rows))
    scores = torch.mm(left_rows, right_rows.T, out=memory[: shape[0] * shape[1]].view(shape))
    bits = scores.view(_whole_numbers(scores.dtype))
    rows = (bits.amax(dim=1) >= least).nonzero().squeeze(1)
    if not len(rows):
        return
    row, column = (bits[rows] >= least).nonzero().unbind(1)
    if len(row) > _DENSE * scores.numel():
        found.add_all(left[rows.numpy()], right)
    else:
        found.add(left[rows[row].numpy()], right[column.numpy()])


def padded_size(num_rows: Size) -> Size:
    """Return up to which multiple rows of zeros, which match nothing, are to be added."""
    return -(-num_rows // _MULTIPLE) * _MULTIPLE


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Give as many threads as PyTorch would use for one product, each of which computes its own on one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # also of threads that begin hereafter
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)


def _whole_numbers(dtype: torch.dtype) -> torch.dtype:
    return torch.int16 if dtype == torch.bfloat16 else torch.int32


def block_rows(num_left: int, width: int, num_threads: int, memory_bytes: int) -> int:
    """Return how many rows at right to read at a time, so that everything stays within the memory given.

    Raises:
        FovealError: not even the rows at left fit.
    """
    rest = memory_bytes // 2 - num_left * width * 4  # the other half is for pairs and their exact scores
    fitting = rest // (num_threads * width * _BYTES_A_NUMBER)
    if fitting < _LEAST_BLOCK_ROWS:
        needed = 2 * width * (4 * num_left + _LEAST_BLOCK_ROWS * num_threads * _BYTES_A_NUMBER)
        raise FovealError(
            f"{num_left} rows of width {width} at a time need {needed / 2**20:.0f} MiB, allowed are "
            f"{memory_bytes / 2**20:.0f}; allow more memory or choose a smaller shard size"
        )
    return min(_BLOCK_ROWS, fitting)


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def tiles(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield pieces of rows that are fit for one product, and where they start."""
    return ((start, rows[start : start + TILE]) for start in range(0, len(rows), TILE))
