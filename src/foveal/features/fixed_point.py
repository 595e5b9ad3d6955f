"""Cosines that depend neither on the order of a sum nor on blocks: whole numbers, compared as keys.

L2-normalised rows are rounded to multiples of 2^-26, so that float64 sums of their products are exact, and the lengths
of the rounded rows are divided out. A key is the cosine in fixed point above the inverted row number: keys are unique,
and sort by similarity, then by the lower number.

Shapes: Q queries, N database rows, D width, k neighbours.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import FovealError


def whole_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return L2-normalised rows times 2^26 as whole float64 numbers, and their lengths (1 for rows of zeros).

    Sums of products of such rows stay below 2^53 at every step (Cauchy-Schwarz), where float64 is exact.

    Raises:
        FovealError: a number that is not finite.
    """
    whole = x.to(torch.float64, copy=True)
    lengths = torch.linalg.vector_norm(whole, dim=1)
    if not lengths.isfinite().all() and not x.isfinite().all():
        raise FovealError(
            "features hold NaN or infinity; the model that made them has diverged, use an earlier checkpoint"
        )
    F.normalize(whole, dim=1, eps=1e-300, out=whole).mul_(2**26).round_()
    return whole, torch.linalg.vector_norm(whole, dim=1).clamp(min=1)


def keys(similarities: Tensor, indices: Tensor, index_bits: int) -> Tensor:
    """Return int64 keys of float64 similarities and the numbers of their rows."""
    fixed_point = (similarities * scale(index_bits)).round().long()
    return fixed_point << index_bits | _lowest_bits(~indices, index_bits)


def read_keys(keys: Tensor, index_bits: int) -> tuple[Tensor, Tensor]:
    """Return similarities, float64, and row numbers, int64, of keys."""
    return (keys >> index_bits).double() / scale(index_bits), _lowest_bits(~keys, index_bits)


def bits_of_index(num_rows: int) -> int:
    """Return how many bits of a key hold the number of a row."""
    return (num_rows - 1).bit_length()


def scale(index_bits: int) -> float:
    """Return how many steps of fixed point a similarity of 1 has."""
    return 2.0 ** (62 - index_bits)


def top_keys(queries: Tensor, blocks: Iterable[Tensor], k: int, index_bits: int) -> Tensor:
    """Return (Q, k) keys in falling order of the most similar rows of a database that comes in blocks (b, D)."""
    rows, lengths = whole_rows(queries)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    first = 0
    for features in blocks:
        block, block_lengths = whole_rows(features)
        similarities = (rows @ block.T).div_(lengths[:, None] * block_lengths)
        index = torch.arange(first, first + len(block), device=queries.device)
        candidates = torch.cat([best, keys(similarities, index, index_bits)], dim=1)
        best = candidates.topk(min(k, candidates.shape[1]), dim=1).values
        first += len(block)
    return best


def candidate_keys(queries: Tensor, rows: Tensor, lengths: Tensor, indices: Tensor, index_bits: int) -> Tensor:
    """Return (Q, C) keys of candidates.

    Args:
        queries: (Q, D) float.
        rows: (Q, C, D) the candidates of each query, as `whole_rows` gives them.
        lengths: (Q, C) of these.
        indices: (Q, C) int64, the numbers of these rows.
        index_bits: of a key.
    """
    left, left_lengths = whole_rows(queries)
    products = torch.bmm(rows, left[:, :, None]).squeeze(2)
    return keys(products / (left_lengths[:, None] * lengths), indices, index_bits)


def _lowest_bits(x: Tensor, bits: int) -> Tensor:
    return x & (2**bits - 1)
