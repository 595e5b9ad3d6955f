"""Exact search in a database that is read block by block and never held whole: fast where that is safe.

Shapes: Q queries, N database rows, D width, k neighbours, C candidates.
"""

import logging
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.engine.cpu import has_bf16
from foveal.engine.device import open_device
from foveal.errors import FovealError
from foveal.features.candidates import Candidates
from foveal.features.database import Database
from foveal.features.neighbours import check_k, order_candidates, top_k_of_blocks

logger = logging.getLogger(__name__)

SearchPrecision = Literal["fp32", "bf16"]

_SCORES_AT_A_TIME = 2**22
# So many similarities are gathered before the best are looked for: with few queries a block has too few to be worth it.
_SCORES_TOGETHER = 2**18


class Neighbours(NamedTuple):
    """Similarities (Q, k) float32 in falling order, and row numbers (Q, k) int64. No neighbour: -inf and -1."""

    similarities: Tensor
    indices: Tensor


def search_exact(
    queries: Tensor,
    database: Database,
    *,
    k: int,
    precision: SearchPrecision = "fp32",
    device: str | torch.device = "cpu",
) -> Neighbours:
    """Find the k rows most similar to each query by cosine: the answer of `top_k`, at the speed of a product.

    One pass over the database computes all similarities in `precision` and keeps C > k candidates of each query. These
    are ordered again with the exact arithmetic of `top_k`. If the k-th of them exceeds every similarity that was
    dropped by more than the rounding error can be, the answer is proven; else (many copies of an image, features of a
    collapsed model) that query is searched again, in fp32, then in fp64. So the precision changes the time, never the
    answer. bf16 pays on a processor with bf16 instructions and with many queries; one query is bound by memory.

    Memory: a block of 2 MB (128 MB on a GPU) up to three times, 2^22 similarities, 12 * C bytes a query, 4 bytes a row.

    Args:
        queries: (Q, D) float, of any length; a row of zeros has similarity 0 to everything.
        database: what is searched.
        k: neighbours, 1 to N.
        precision: "fp32" or "bf16", of the products.
        device: where they are computed.

    Raises:
        FovealError: k outside 1..N, widths that differ, features that are not finite, or an unknown precision.

    Example:
        >>> database = Database.of_array(np.array([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]], dtype=np.float16))
        >>> search_exact(torch.tensor([[1.0, 0.0]]), database, k=2).indices
        tensor([[1, 2]])
    """
    if precision not in get_args(SearchPrecision):
        raise FovealError(f"precision '{precision}' is not known; choose {' or '.join(get_args(SearchPrecision))}")
    device = open_device(device)
    _warn_of_emulated_bf16(precision, device)
    queries = check_queries(queries, database, k)
    similarities = torch.empty(len(queries), k)
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    todo = torch.arange(len(queries))
    stages: tuple[SearchPrecision, ...] = ("fp32",) if precision == "fp32" else ("bf16", "fp32")
    for stage in stages:
        if len(todo):
            found, proven = _search_once(queries[todo], database, k, stage, device)
            similarities[todo], indices[todo] = found
            todo = todo[~proven]
            if len(todo):
                logger.info(
                    "%d of %d queries have more rows of nearly equal similarity than %s can order; searching again",
                    len(todo),
                    len(queries),
                    stage,
                )
    if len(todo):
        size = database.block_rows(torch.device("cpu"))
        similarities[todo], indices[todo] = top_k_of_blocks(
            queries[todo],
            lambda: (block.cpu() for block in database.blocks(size)),
            k=k,
            num_rows=database.num_rows,
            block_queries=max(1, _SCORES_AT_A_TIME // size),
        )
    return Neighbours(similarities, indices)


def rank_exactly(queries: Tensor, database: Database, candidates: Tensor, *, k: int) -> Neighbours:
    """Read candidate rows from the database and return the k most similar of each query, with exact similarities.

    Args:
        queries: (Q, D) float32.
        database: what the candidates are rows of.
        candidates: (Q, C) int64, distinct for each query; negative where there is none.
        k: neighbours, 1 to C.
    """
    parts = []
    at_a_time = max(1, _SCORES_AT_A_TIME // (candidates.shape[1] * database.width))
    for some, numbers in zip(queries.split(at_a_time), candidates.split(at_a_time), strict=True):
        wanted, places = torch.unique(numbers.clamp(min=0), return_inverse=True)
        rows = database.read(wanted.numpy())
        parts.append(order_candidates(some, rows, places, numbers, k=k, num_rows=database.num_rows))
    similarities, indices = zip(*parts, strict=True)
    return Neighbours(torch.cat(similarities), torch.cat(indices))


def without_self(found: Neighbours, numbers: Tensor) -> Neighbours:
    """Leave out of the neighbours of rows these rows themselves; one neighbour fewer remains for each.

    Args:
        found: (Q, k) neighbours, k >= 2.
        numbers: (Q,) int64, the row that each query is.
    """
    others = found.indices != numbers[:, None]
    others[:, -1] &= ~others.all(dim=1)  # of copies of itself, so many that it is not among them, drop the last
    shape = (len(numbers), found.indices.shape[1] - 1)
    return Neighbours(found.similarities[others].view(shape), found.indices[others].view(shape))


def check_queries(queries: Tensor, database: Database, k: int) -> Tensor:
    """Return queries (Q, D), Q >= 1, on the CPU; FovealError where they do not fit the database or k does not."""
    check_k(k, database.num_rows)
    if queries.ndim != 2 or queries.shape[1] != database.width or len(queries) == 0:
        raise FovealError(
            f"queries {tuple(queries.shape)} in a database of width {database.width}; "
            f"give (queries, {database.width}), at least one"
        )
    if not queries.isfinite().all():
        raise FovealError("a query holds NaN or infinity; the model that made it has diverged")
    return queries.cpu()


def _search_once(
    queries: Tensor, database: Database, k: int, precision: SearchPrecision, device: torch.device
) -> tuple[Neighbours, Tensor]:
    """Return neighbours after one pass in `precision`, and (Q,) bool: True where they are proven to be the answer."""
    num_candidates = min(database.num_rows, k + 32 if precision == "fp32" else 4 * k + 96)
    unit = F.normalize(queries.double(), dim=1, eps=1e-300).float().to(device)
    pools = [
        _Pool(part.bfloat16() if precision == "bf16" else part, num_candidates)
        for part in unit.split(max(1, _SCORES_AT_A_TIME // database.block_rows(device)))
    ]
    for first, block, inverse in database.scored_blocks(device):
        rows = block.bfloat16() if precision == "bf16" else block
        for pool in pools:
            pool.add(rows, inverse, first)
    kept = [pool.end() for pool in pools]
    candidates = torch.cat([pool.numbers.cpu() for pool in kept])
    dropped = torch.cat([pool.floor.cpu() for pool in kept])
    found = rank_exactly(queries, database, candidates, k=k)
    if num_candidates == database.num_rows:
        return found, torch.ones(len(queries), dtype=torch.bool)
    return found, found.similarities[:, -1] > dropped + error_bound(precision, database.width)


class _Pool:
    """Some queries and the best candidates of each, with similarities that wait until they are many enough."""

    def __init__(self, queries: Tensor, num_candidates: int) -> None:
        self.queries = queries
        self.candidates = Candidates(len(queries), num_candidates, queries.device)
        self.waiting: list[Tensor] = []  # similarities of the latest blocks
        self.first = 0  # row number of the first of them

    def add(self, rows: Tensor, inverse_lengths: Tensor, first: int) -> None:
        """Compare with the rows of one block, and take in what is waiting once it is enough."""
        if not self.waiting:
            self.first = first
        self.waiting.append((self.queries @ rows.T).float().mul_(inverse_lengths))
        if sum(map(Tensor.numel, self.waiting)) >= _SCORES_TOGETHER:
            self.take_in()

    def take_in(self) -> None:
        """Take in the waiting similarities."""
        if self.waiting:
            similarities = self.waiting[0] if len(self.waiting) == 1 else torch.cat(self.waiting, dim=1)
            self.candidates.take(similarities, self.first)
            self.waiting = []

    def end(self) -> Candidates:
        """Return the candidates, after the last block."""
        self.take_in()
        self.candidates.merge()
        return self.candidates


def error_bound(precision: SearchPrecision, width: int) -> float:
    """Return how far a computed cosine can be from the true one.

    fp32: each of D products and sums, in the cosine and in the length, rounds by at most 2^-24 of a sum of magnitudes
    that is at most 1; the rest (units, division, the float32 result) is a few roundings more. bf16, and fp32 where the
    user lets PyTorch compute it by TF32 or bf16: both factors and the result round by 2^-9, and as much again twice is
    left for sums split over processors.
    """
    if precision == "fp32" and torch.get_float32_matmul_precision() == "highest":
        return (2 * width + 16) * 2.0**-24
    return 8 * 2.0**-9


def _warn_of_emulated_bf16(precision: SearchPrecision, device: torch.device) -> None:
    """Warn where a CPU has no bf16 instructions: PyTorch then emulates them, many times slower than fp32."""
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        logger.warning("precision=bf16 on a CPU without bf16 instructions is slow; use precision=fp32 there")
