"""Exact neighbours at the speed of float32: rough scores choose candidates, and a bound on their error proves them.

Shapes: Q queries, N database rows, D width, k neighbours, C candidates, q queries and b rows at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from foveal.features.candidates import Candidates
from foveal.features.fixed_point import bits_of_index, candidate_keys, read_keys, scale, top_keys, whole_rows

_NUMBERS_AT_A_TIME = 2**20  # of candidate rows that are scored exactly
_ROWS_A_CANDIDATE = 128  # with fewer database rows a candidate, exact scores of these cost more than the filter saves


def filter_pays(num_rows: int, k: int) -> bool:
    """Say whether rough scores first are faster than exact scores of all rows."""
    is_plain_float32 = torch.get_float32_matmul_precision() == "highest"
    return is_plain_float32 and num_rows >= _ROWS_A_CANDIDATE * _num_candidates(k)


def filtered_keys(queries: Tensor, database: Tensor, *, k: int, block_queries: int, block_database: int) -> Tensor:
    """Return what `top_keys` does, (Q, k) keys in falling order, for a database (N, D) of many rows a candidate.

    With q and x of length 1, and any point c,

        cos(q, x) = q . c + [q - c, 1] . [x - c, c . (x - c)].

    The last product is computed in float32. Its error is relative to the distances from c, which lies among the rows:
    so rows that have barely left a common point are told apart too. The C best rows of each query are then scored
    exactly. Where the k-th of them exceeds all that a dropped row can have, the answer is proven. Other queries, those
    with many copies of a neighbour, are searched again by exact scores of all rows.
    """
    index_bits = bits_of_index(len(database))
    numbers, bound = _candidates(queries, database, k, block_queries, block_database)
    at_a_time = max(1, _NUMBERS_AT_A_TIME // (numbers.shape[1] * database.shape[1]))
    found = torch.cat(
        [
            _best_of(some, database, few, k, index_bits)
            for some, few in zip(queries.split(at_a_time), numbers.split(at_a_time), strict=True)
        ]
    )
    unproven = read_keys(found[:, -1], index_bits)[0] <= bound + 2 / scale(index_bits)
    if unproven.any():
        blocks = database.split(block_database)
        again = [top_keys(some, blocks, k, index_bits) for some in queries[unproven].split(block_queries)]
        found[unproven] = torch.cat(again)
    return found


def _num_candidates(k: int) -> int:
    return k + k // 8 + 8


def _best_of(queries: Tensor, database: Tensor, numbers: Tensor, k: int, index_bits: int) -> Tensor:
    """Return (q, k) keys of the best of the candidates (q, C)."""
    rows, lengths = whole_rows(database[numbers.flatten()])
    rows, lengths = rows.view(*numbers.shape, -1), lengths.view_as(numbers)
    return candidate_keys(queries, rows, lengths, numbers, index_bits).topk(k, dim=1).values


def _candidates(
    queries: Tensor, database: Tensor, k: int, block_queries: int, block_database: int
) -> tuple[Tensor, Tensor]:
    """Return (Q, C) numbers of the rows with the best rough scores, and (Q,) what no other row's cosine exceeds."""
    centre = _unit_rows(database[:block_database]).mean(dim=0)
    parts = [_with_ones(_moved(block, centre)) for block in queries.split(block_queries)]
    pools = [Candidates(len(part.rows), _num_candidates(k), queries.device) for part in parts]
    buffer = torch.empty(min(block_queries, len(queries)) * block_database, device=queries.device)
    reach = tilt = 0.0  # the largest distance and the largest tilt of a row
    for first in range(0, len(database), block_database):
        block = _moved(database[first : first + block_database], centre)
        reach, tilt = max(reach, float(block.distances.max())), max(tilt, float(block.tilts.abs().max()))
        rows = torch.cat([block.rows, block.tilts.float()[:, None]], dim=1)
        for part, pool in zip(parts, pools, strict=True):
            scores = buffer[: len(part.rows) * len(rows)].view(len(part.rows), len(rows))
            pool.take(torch.mm(part.rows, rows.T, out=scores), first)
    for pool in pools:
        pool.merge()
    length = centre.norm() ** 2
    bounds = [
        part.tilts + length + pool.floor + _error(len(centre), part.distances * reach + tilt)
        for part, pool in zip(parts, pools, strict=True)
    ]
    return torch.cat([pool.numbers for pool in pools]), torch.cat(bounds)


def _error(width: int, magnitude: Tensor) -> Tensor:
    """Return how far a rough score can be from the true one; `magnitude` bounds the sum of its terms' magnitudes.

    Each of D + 1 products, sums and factors rounds by at most 2^-24 of it. What is computed in float64 (rows of length
    1, distances from the centre, q . c) rounds by some 2^-53 a number, on sums of magnitudes of at most 4.
    """
    return (width + 8) * 2.0**-24 * magnitude + (width + 8) * 2.0**-50


class _Moved(NamedTuple):
    """Rows x of length 1, seen from a centre c."""

    rows: Tensor  # x - c, (b, D) float32
    distances: Tensor  # |x - c|, (b,) float64
    tilts: Tensor  # c . (x - c), (b,) float64


def _moved(block: Tensor, centre: Tensor) -> _Moved:
    moved = _unit_rows(block).sub_(centre)
    return _Moved(moved.float(), torch.linalg.vector_norm(moved, dim=1), moved @ centre)


def _with_ones(moved: _Moved) -> _Moved:
    """Return rows with a last number of 1, which meets the tilts of the database."""
    return moved._replace(rows=torch.cat([moved.rows, moved.rows.new_ones(len(moved.rows), 1)], dim=1))


def _unit_rows(block: Tensor) -> Tensor:
    """Return (b, D) float64, the directions that exact scores are of."""
    whole, lengths = whole_rows(block)
    return whole.div_(lengths[:, None])
