"""Exact nearest neighbours by cosine, in blocks, and the weighted vote of the published kNN protocol.

Shapes: Q queries, N database rows, D width, k neighbours, C classes.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.fixed_point import bits_of_index, candidate_keys, read_keys, top_keys, whole_rows
from foveal.features.rough_filter import filter_pays, filtered_keys

logger = logging.getLogger(__name__)

_QUERIES_TOGETHER = 2**16  # that share one pass over the database


class Accuracy(NamedTuple):
    """Shares of test images in 0..1: right at the first class, and among the first five (None below 5 classes)."""

    top1: float
    top5: float | None


def top_k(
    queries: Tensor, database: Tensor, *, k: int, block_queries: int = 1024, block_database: int = 2048
) -> tuple[Tensor, Tensor]:
    """Find the k database rows most similar to each query by cosine, exactly.

    The answer does not depend on block sizes or on the order in which a machine sums: the L2-normalised rows are
    rounded to multiples of 2^-26, so that float64 sums of their products are exact, and the lengths of the rounded rows
    are divided out. The rounding moves a cosine by some 1e-8, as rounding features to float32 does, and by far less
    between nearly equal directions. The order is decided in 62 bits less those of an index: features that have barely
    left a common point, as those of an untrained network, are still told apart, which float32 cosines near 1 cannot.
    Equal similarities are ordered by the lower index.

    In a database of many rows, float32 scores choose candidates first, and only these are scored exactly; see
    `rough_filter`. That changes the time, never the answer. It needs some 4 * D + 35 * k bytes a query, answers
    included, for up to 65,536 queries together, and else a few times block_queries * block_database numbers: nothing
    that grows with N.

    Args:
        queries: (Q, D) float, of any length; a row of zeros has similarity 0 to everything.
        database: (N, D) float.
        k: neighbours, 1 to N.
        block_queries: queries at a time.
        block_database: database rows at a time.

    Returns:
        Similarities (Q, k) float32 in falling order, and indices (Q, k) int64 into the database.

    Raises:
        FovealError: k outside 1..N, widths that differ, or features that are not finite.

    Example:
        >>> top_k(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]]), k=2)[1]
        tensor([[1, 2]])
    """
    _check_pair(queries, database)
    check_k(k, len(database))
    if not filter_pays(len(database), k):
        blocks = database.split(block_database)
        return top_k_of_blocks(queries, lambda: blocks, k=k, num_rows=len(database), block_queries=block_queries)
    parts = [
        filtered_keys(part, database, k=k, block_queries=block_queries, block_database=block_database)
        for part in queries.split(_QUERIES_TOGETHER)
    ]
    answers = [_answer(some, bits_of_index(len(database))) for part in parts for some in part.split(block_queries)]
    similarities, indices = (torch.cat(tensors) for tensors in zip(*answers, strict=True))
    return similarities, indices


def top_k_of_blocks(
    queries: Tensor, blocks: Callable[[], Iterable[Tensor]], *, k: int, num_rows: int, block_queries: int = 1024
) -> tuple[Tensor, Tensor]:
    """Do what `top_k` does for a database that comes in blocks.

    Args:
        queries: (Q, D) float.
        blocks: called once for each `block_queries` queries; gives the database in order, as (b, D) float tensors.
        k: neighbours, 1 to num_rows.
        num_rows: N, of all blocks together.
        block_queries: queries at a time.
    """
    check_k(k, num_rows)
    index_bits = bits_of_index(num_rows)
    keys = torch.cat([top_keys(block, blocks(), k, index_bits) for block in queries.split(block_queries)])
    return _answer(keys, index_bits)


def order_candidates(
    queries: Tensor, rows: Tensor, places: Tensor, indices: Tensor, *, k: int, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Find the k most similar of a few candidate rows of each query, with the arithmetic and the order of `top_k`.

    Args:
        queries: (Q, D) float.
        rows: (R, D) float, each row that is a candidate of some query.
        places: (Q, C) int64 into `rows`; distinct for each query.
        indices: (Q, C) int64, the numbers of these rows in a database of `num_rows`; a negative one is no candidate.
        k: neighbours, 1 to C.
        num_rows: N.

    Returns:
        Similarities (Q, k) float32 in falling order and indices (Q, k) int64; -inf and -1 where candidates ran out.
    """
    index_bits = bits_of_index(num_rows)
    right, lengths = whole_rows(rows)
    keys = candidate_keys(queries, right[places], lengths[places], indices, index_bits)
    keys = torch.where(indices >= 0, keys, torch.iinfo(torch.int64).min).topk(k, dim=1).values
    similarities, found = _answer(keys, index_bits)
    missing = keys == torch.iinfo(torch.int64).min
    return similarities.masked_fill(missing, -torch.inf), found.masked_fill(missing, -1)


def check_k(k: int, num_rows: int) -> None:
    """Raise FovealError unless a database of `num_rows` has k neighbours to give."""
    if not 1 <= k <= num_rows:
        raise FovealError(f"k={k} neighbours of a database of {num_rows} rows; choose k from 1 to {num_rows}")


def knn_vote(
    similarities: Tensor, neighbour_labels: Tensor, *, num_classes: int, ks: Sequence[int], temperature: float = 0.07
) -> dict[int, Tensor]:
    """Score classes by the weighted vote of the nearest neighbours.

    Weights are softmax(similarity / temperature) over the max(ks) nearest; the score of a class for k is the sum of the
    weights of those of the first k neighbours that carry it. Source: arXiv 2104.14294, appendix F, as evaluated by
    DINOv2 (one softmax over the largest k, shared by the smaller ones).

    Args:
        similarities: (Q, K) float in falling order, K >= max(ks).
        neighbour_labels: (Q, K) int64 in 0..num_classes - 1.
        num_classes: C.
        ks: numbers of neighbours that vote.
        temperature: of the softmax, > 0.

    Returns:
        For each k the scores (Q, C), float32.
    """
    largest = max(ks)
    if min(ks) < 1 or largest > similarities.shape[1]:
        raise FovealError(f"ks={tuple(ks)} with {similarities.shape[1]} neighbours given; choose from 1 to that number")
    if temperature <= 0:
        raise FovealError(f"temperature={temperature}; it must be above 0 (the published protocol uses 0.07)")
    weights = (similarities[:, :largest] / temperature).softmax(dim=1)
    empty = weights.new_zeros(len(weights), num_classes)
    return {k: empty.scatter_add(1, neighbour_labels[:, :k], weights[:, :k]) for k in ks}


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    block_queries: int = 1024,
) -> dict[int, Accuracy]:
    """Classify test features by their nearest train features and return the accuracy for each k.

    Classes with equal scores are ordered by the lower number. A k above the number of train features is left out with a
    warning; the result may therefore be empty.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) int64, from 0.
        test_features: (Q, D) float.
        test_labels: (Q,) int64.
        ks: numbers of neighbours.
        temperature: see `knn_vote`.
        block_queries: test features at a time.
    """
    ranks = knn_ranks(
        train_features,
        train_labels,
        test_features,
        test_labels,
        ks=ks,
        temperature=temperature,
        block_queries=block_queries,
    )
    num_classes = 1 + int(max(train_labels.max(), test_labels.max()))
    return {k: _accuracy(found, num_classes) for k, found in ranks.items()}


def knn_ranks(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    block_queries: int = 1024,
) -> dict[int, Tensor]:
    """Return for each k how many classes stand before the true one of each test feature, (Q,) int64: 0 is right.

    Arguments as for `knn_accuracy`.
    """
    _check_labelled("train", train_features, train_labels)
    _check_labelled("test", test_features, test_labels)
    usable = sorted({k for k in ks if k <= len(train_features)})
    if left_out := sorted(set(ks) - set(usable)):
        logger.warning(
            "kNN: %d values of k left out %s: only %d train images", len(left_out), left_out, len(train_features)
        )
    if not usable:
        return {}
    num_classes = 1 + int(max(train_labels.max(), test_labels.max()))
    neighbours = top_k(test_features, train_features, k=usable[-1], block_queries=block_queries)
    ranks: dict[int, list[Tensor]] = {k: [] for k in usable}
    blocks = (tensor.split(block_queries) for tensor in (*neighbours, test_labels))
    for similarities, indices, labels in zip(*blocks, strict=True):
        scores = knn_vote(
            similarities, train_labels[indices], num_classes=num_classes, ks=usable, temperature=temperature
        )
        for k in usable:
            ranks[k].append(_rank_of(scores[k], labels))
    return {k: torch.cat(ranks[k]) for k in usable}


def _answer(keys: Tensor, index_bits: int) -> tuple[Tensor, Tensor]:
    similarities, indices = read_keys(keys, index_bits)
    return similarities.float(), indices


def _rank_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (Q,) how many classes stand before the true one; equal scores stand by the lower class."""
    true = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > true) | ((scores == true) & lower)).sum(dim=1)


def _accuracy(ranks: Tensor, num_classes: int) -> Accuracy:
    def share(limit: int) -> float:
        return float((ranks < limit).double().mean())

    return Accuracy(share(1), share(5) if num_classes >= 5 else None)


def _check_pair(queries: Tensor, database: Tensor) -> None:
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise FovealError(
            f"queries {tuple(queries.shape)} and database {tuple(database.shape)} do not fit; "
            "both must be (rows, width) with the same width"
        )


def _check_labelled(name: str, features: Tensor, labels: Tensor) -> None:
    if len(features) != len(labels) or len(labels) == 0:
        raise FovealError(
            f"{len(features)} {name} features with {len(labels)} labels; give one label for each, at least one"
        )
    if int(labels.min()) < 0:
        raise FovealError(f"{name} labels hold {int(labels.min())}; number the classes from 0")
