import doctest

import numpy as np
import pytest

from foveal.errors import ImageSetError
from foveal.pretrain.data import sampler
from foveal.pretrain.data.sampler import batch_indices, replacement, sample_at


def epoch_order(epoch: int, *, num_images: int, seed: int = 0) -> np.ndarray:
    epochs, indices = batch_indices(epoch, batch_size=num_images, num_images=num_images, seed=seed)
    assert set(epochs.tolist()) == {epoch}
    return indices


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 5, 7, 100, 1000, 65536, 65537])
@pytest.mark.parametrize("seed", [0, 1, -3, 2**70])
def test_every_epoch_shows_every_image_once(num_images: int, seed: int) -> None:
    for epoch in (0, 1, 5):
        order = epoch_order(epoch, num_images=num_images, seed=seed)
        assert np.array_equal(np.sort(order), np.arange(num_images))


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [epoch_order(e, num_images=1000, seed=s).tobytes() for e in range(5) for s in range(5)]
    assert len(set(orders)) == 25


@pytest.mark.parametrize(("num_images", "batch_size"), [(7, 3), (3, 7), (100, 64), (1, 5), (13, 13)])
def test_batches_across_the_end_of_an_epoch_miss_none_and_repeat_none(num_images: int, batch_size: int) -> None:
    steps = [batch_indices(s, batch_size=batch_size, num_images=num_images, seed=11) for s in range(4 * num_images)]
    epochs, indices = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    assert np.array_equal(epochs, np.arange(epochs.size) // num_images)
    for epoch in range(4 * batch_size):
        assert sorted(indices[epochs == epoch].tolist()) == list(range(num_images))


def test_order_does_not_depend_on_the_batch_size() -> None:
    whole = batch_indices(0, batch_size=210, num_images=37, seed=5)
    parts = [batch_indices(s, batch_size=6, num_images=37, seed=5) for s in range(35)]
    for k in range(2):
        assert np.array_equal(whole[k], np.concatenate([p[k] for p in parts]))
    singles = [sample_at(position, num_images=37, seed=5) for position in range(210)]
    assert singles == list(zip(*(w.tolist() for w in whole), strict=True))


def test_far_positions_of_a_very_large_set_are_exact() -> None:
    num_images, epoch = 10**12 + 39, 3
    start = epoch * num_images
    samples = [sample_at(start + k, num_images=num_images, seed=2) for k in (0, 1, num_images - 1, num_images)]
    assert [e for e, _ in samples] == [3, 3, 3, 4]
    assert len({i for _, i in samples}) == 4
    assert all(0 <= i < num_images for _, i in samples)


def test_position_says_nothing_about_the_image() -> None:
    """Chi-square of 20 position buckets x 20 index buckets; 361 degrees of freedom, 5 sigma above the mean is 495."""
    num_images = 40_000
    table = np.zeros((20, 20))
    for epoch in range(3):
        order = epoch_order(epoch, num_images=num_images)
        np.add.at(table, (np.arange(num_images) * 20 // num_images, order * 20 // num_images), 1)
    expected = table.sum() / table.size
    assert ((table - expected) ** 2 / expected).sum() < 361 + 5 * np.sqrt(2 * 361)


def test_neighbours_in_one_epoch_are_not_neighbours_in_the_set() -> None:
    order = epoch_order(0, num_images=10_007).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(10_006)


def test_small_sets_reach_every_order() -> None:
    counts: dict[bytes, int] = {}
    for epoch in range(1200):
        key = epoch_order(epoch, num_images=3).tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 200 - 5 * np.sqrt(200 * 5 / 6)


@pytest.mark.parametrize("num_images", [2, 3, 10, 257])
def test_replacements_visit_each_other_image_once_and_never_the_same(num_images: int) -> None:
    for index in (0, num_images - 1):
        chosen = [replacement(index, a, num_images=num_images, seed=4, epoch=1) for a in range(num_images - 1)]
        assert sorted(chosen) == [i for i in range(num_images) if i != index]


def test_replacement_depends_on_seed_epoch_and_index() -> None:
    def choices(seed: int, epoch: int, index: int) -> tuple[int, ...]:
        return tuple(replacement(index, a, num_images=1009, seed=seed, epoch=epoch) for a in range(4))

    assert choices(0, 0, 0) == choices(0, 0, 0)
    assert len({choices(0, 0, 0), choices(1, 0, 0), choices(0, 1, 0), choices(0, 0, 1)}) == 4


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ImageSetError, match="at least 1 image"):
        batch_indices(0, batch_size=2, num_images=0, seed=0)
    with pytest.raises(ImageSetError, match="step=-1"):
        batch_indices(-1, batch_size=2, num_images=3, seed=0)
    with pytest.raises(ImageSetError, match="no other image"):
        replacement(0, 0, num_images=1, seed=0, epoch=0)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(sampler) == (0, 1)
