import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.neighbours import Accuracy, knn_accuracy, knn_vote, top_k

BLOCKS = [(1, 1), (3, 7), (13, 5), (1000, 1000)]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _cosines(queries: Tensor, database: Tensor) -> np.ndarray:
    q, d = queries.double().numpy(), database.double().numpy()
    return (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (d / np.linalg.norm(d, axis=1, keepdims=True)).T


@pytest.mark.parametrize(("block_queries", "block_database"), BLOCKS)
@pytest.mark.parametrize("k", [1, 4, 23])
def test_top_k_equals_a_float64_sort(k: int, block_queries: int, block_database: int) -> None:
    queries, database = _random(11, 5), 3 * _random(23, 5, seed=1)
    similarities, indices = top_k(queries, database, k=k, block_queries=block_queries, block_database=block_database)
    expected = _cosines(queries, database)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices.numpy(), order)
    # rounding the unit rows to 2^-26 and the result to float32: some 1e-8 each, on values up to 1
    np.testing.assert_allclose(similarities.numpy(), np.take_along_axis(expected, order, 1), atol=1e-7, rtol=0)
    assert similarities.dtype == torch.float32


@pytest.mark.parametrize(("block_queries", "block_database"), BLOCKS)
def test_equal_rows_come_in_the_order_of_their_index(block_queries: int, block_database: int) -> None:
    base = _random(4, 7)
    database = torch.cat([base[[2, 0, 1]], base * 4, base[[1, 2]], -base])  # row 0 of base: 1, 3; row 1: 2, 4, 7
    _, indices = top_k(base[:2], database, k=3, block_queries=block_queries, block_database=block_database)
    assert indices[0, :2].tolist() == [1, 3]
    assert indices[1].tolist() == [2, 4, 7]


def test_many_equal_rows_do_not_depend_on_the_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    database = _random(6, 13)[torch.randint(6, (311,), generator=generator)]
    queries = _random(17, 13, seed=2)
    whole = top_k(queries, database, k=97)
    for block_queries, block_database in [(5, 31), (17, 64), (2, 311)]:
        part = top_k(queries, database, k=97, block_queries=block_queries, block_database=block_database)
        assert torch.equal(part[0], whole[0])
        assert torch.equal(part[1], whole[1])


def test_zero_and_negative_similarities_are_ordered() -> None:
    database = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, -1.0], [2.0, 0.0], [-1.0, 1e-3]])
    similarities, indices = top_k(torch.tensor([[3.0, 0.0]]), database, k=6)
    assert indices.tolist() == [[4, 1, 2, 3, 5, 0]]  # zeros by index, whatever their sign; the least negative first
    torch.testing.assert_close(similarities, torch.tensor([[1.0, 0.0, 0.0, 0.0, -1.0, -1.0]]), atol=1e-6, rtol=0)


def test_a_negative_similarity_too_small_to_resolve_counts_as_zero() -> None:
    database = torch.tensor([[-1e-200, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert top_k(torch.tensor([[1.0, 0.0]]), database, k=2)[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_out_of_range_is_named(k: int) -> None:
    with pytest.raises(FovealError, match=f"k={k} neighbours of a database of 3 rows; choose k from 1 to 3"):
        top_k(torch.ones(2, 5), torch.ones(3, 5), k=k)


def test_widths_that_differ_are_named() -> None:
    with pytest.raises(FovealError, match=r"queries \(2, 5\) and database \(3, 4\) do not fit"):
        top_k(torch.ones(2, 5), torch.ones(3, 4), k=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_features_that_are_not_finite_are_refused(bad: float, side: int) -> None:
    pair = [torch.ones(2, 5), torch.ones(3, 5)]
    pair[side][1, 2] = bad
    with pytest.raises(FovealError, match="NaN or infinity"):
        top_k(*pair, k=1)


def test_vote_is_the_softmax_of_the_published_protocol() -> None:
    similarities = torch.tensor([[0.9, 0.8, 0.7], [0.5, 0.5, -0.5]])
    labels = torch.tensor([[2, 0, 0], [1, 1, 3]])
    scores = knn_vote(similarities, labels, num_classes=4, ks=[1, 3], temperature=0.1)
    e = np.exp([0.0, -1.0, -2.0])
    weights = e / e.sum()
    expected = torch.tensor([weights[1] + weights[2], 0.0, weights[0], 0.0])
    torch.testing.assert_close(scores[3][0].double(), expected, atol=1e-6, rtol=0)
    # k = 1 votes with the weight it has among all three
    torch.testing.assert_close(scores[1][0], torch.tensor([0, 0, weights[0], 0]).float(), atol=1e-6, rtol=0)
    assert scores[3][1].argmax() == 1
    assert scores[3].sum(dim=1).tolist() == pytest.approx([1, 1])


def test_neighbours_beyond_the_largest_k_do_not_weigh() -> None:
    similarities, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 1, 1]])
    scores = knn_vote(similarities, labels, num_classes=2, ks=[2])
    assert scores[2].sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("ks", "temperature", "message"), [([4], 0.07, "with 3 neigh"), ([0], 1, "ks="), ([1], 0, "temp")]
)
def test_votes_that_cannot_be_counted_are_explained(ks: list[int], temperature: float, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        knn_vote(torch.ones(1, 3), torch.zeros(1, 3).long(), num_classes=1, ks=ks, temperature=temperature)


def _reference_top_n(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, *, ks: list[int], n: int) -> dict:
    """The protocol, one test image at a time, in float64 NumPy."""
    cosines, num_classes = _cosines(test, train), int(max(labels.max(), truth.max())) + 1
    right = dict.fromkeys(ks, 0)
    for row, true in zip(cosines, truth.tolist(), strict=True):
        order = np.argsort(-row, kind="stable")[: max(ks)]
        weights = np.exp(row[order] / 0.07)
        for k in ks:
            score = np.zeros(num_classes)
            for weight, label in zip(weights[:k], labels.numpy()[order[:k]], strict=True):
                score[label] += weight
            right[k] += true in np.argsort(-score, kind="stable")[:n]
    return {k: count / len(truth) for k, count in right.items()}


@pytest.mark.parametrize("block_queries", [4, 1000])
def test_accuracy_equals_the_protocol_in_float64(block_queries: int) -> None:
    generator = torch.Generator().manual_seed(3)
    centres = _random(7, 5)
    labels, truth = torch.randint(7, (53,), generator=generator), torch.randint(7, (29,), generator=generator)
    train = centres[labels] + _random(53, 5, seed=4)
    test = centres[truth] + _random(29, 5, seed=5)
    ks = [1, 10, 20]
    found = knn_accuracy(train, labels, test, truth, ks=ks, block_queries=block_queries)
    top1 = _reference_top_n(train, labels, test, truth, ks=ks, n=1)
    top5 = _reference_top_n(train, labels, test, truth, ks=ks, n=5)
    assert found == {k: Accuracy(pytest.approx(top1[k]), pytest.approx(top5[k])) for k in ks}
    assert 0.2 < top1[10] < top5[10] <= 1


def test_features_near_a_common_point_are_told_apart() -> None:
    """As of an untrained network: all cosines are 1 in float32, but the classes are there."""
    labels = torch.arange(40) % 4
    features = torch.ones(40, 16) + 1e-4 * (torch.eye(16)[labels] + 0.1 * _random(40, 16))
    train, test = features[:30], features[30:]
    assert (top_k(test, train, k=30)[0] == 1).all()
    assert knn_accuracy(train, labels[:30], test, labels[30:], ks=[5])[5].top1 == 1


def test_no_top5_below_five_classes() -> None:
    features, labels = torch.eye(4), torch.arange(4)
    assert knn_accuracy(features, labels, features, labels, ks=[1]) == {1: Accuracy(1.0, None)}
    features, labels = torch.eye(5), torch.arange(5)
    assert knn_accuracy(features, labels, features, labels.flip(0), ks=[1])[1] == Accuracy(0.2, 1.0)


def test_k_above_the_train_set_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = torch.eye(5), torch.arange(5)
    with caplog.at_level(logging.WARNING):
        found = knn_accuracy(features, labels, features, labels, ks=[200, 5, 10])
    assert list(found) == [5]
    assert "2 values of k left out [10, 200]: only 5 train images" in caplog.text
    assert knn_accuracy(features, labels, features, labels, ks=[10]) == {}


def test_labels_that_do_not_fit_are_named() -> None:
    with pytest.raises(FovealError, match="3 test features with 2 labels"):
        knn_accuracy(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(2))
    with pytest.raises(FovealError, match="train labels hold -1; number the classes from 0"):
        knn_accuracy(torch.eye(3), torch.arange(3) - 1, torch.eye(3), torch.arange(3))
