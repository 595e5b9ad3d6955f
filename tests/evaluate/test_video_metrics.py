import math
from pathlib import Path

import numpy as np
import pytest
from skimage.morphology import dilation, disk

from foveal.errors import FovealError
from foveal.evaluate.video_metrics import contour, contour_accuracy, course, region_similarity


def test_j_and_f_are_those_of_the_reference(golden: Path) -> None:
    reference = np.load(golden / "video_metrics.npz")
    pairs = list(zip(reference["prediction"] > 0, reference["ground_truth"] > 0, strict=True))
    assert [region_similarity(*pair) for pair in pairs] == pytest.approx(reference["J"], abs=1e-12)
    assert [contour_accuracy(*pair) for pair in pairs] == pytest.approx(reference["F"], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_f_is_that_of_scikit_images_morphology(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (150, 233)  # a radius of 3
    masks = [dilation(generator.random(shape) > 0.998, disk(generator.integers(3, 9))) for _ in range(2)]
    found, real = (contour(mask) for mask in masks)
    near = disk(math.ceil(0.008 * math.hypot(*shape)))
    precision = (found & dilation(real.astype(np.uint8), near).astype(bool)).sum() / found.sum()
    recall = (real & dilation(found.astype(np.uint8), near).astype(bool)).sum() / real.sum()
    assert 0.1 < precision < 0.9
    assert contour_accuracy(*masks) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


def _square(left: int, *, size: int = 4) -> np.ndarray:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5 : 5 + size, left : left + size] = True
    return mask


def test_masks_made_by_hand() -> None:
    empty = np.zeros((20, 30), dtype=bool)
    assert region_similarity(_square(3), _square(5)) == 8 / 24
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1
    assert region_similarity(empty, _square(3)) == contour_accuracy(empty, _square(3)) == 0
    assert contour_accuracy(_square(3), empty) == 0
    assert contour_accuracy(_square(3), _square(4)) == 1  # the radius is ceil(0.008 * 36) = 1
    assert contour_accuracy(_square(3), _square(20)) == 0


def test_the_contour_is_where_right_lower_or_lower_right_neighbours_differ() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[1:3, 1:3] = True
    assert contour(mask).astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_void_pixels_do_not_count() -> None:
    void = np.zeros((20, 30), dtype=bool)
    void[:, 5:7] = True
    assert region_similarity(_square(3, size=2), _square(3), void=void) == 0.5
    assert region_similarity(_square(5, size=2), _square(20), void=~_square(5)) == 0
    assert region_similarity(_square(3), _square(20), void=np.ones_like(void)) == 1
    assert contour_accuracy(_square(3), _square(20), void=np.ones_like(void)) == 1


def test_the_decay_is_first_quarter_less_last() -> None:
    found = course(np.array([1.0, 0.8, 0.5, 0.4, 0.2]))
    assert found == pytest.approx((0.58, 0.4, 0.9 - 0.3))
    assert course(np.linspace(1, 0, 401)).decay == pytest.approx(0.75)  # quarters of 101 frames, borders shared
    with pytest.raises(FovealError, match="give at least 3"):
        course(np.empty(0))


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(FovealError, match=r"shapes \(4, 5\) and \(5, 4\)"):
        region_similarity(np.zeros((4, 5)), np.zeros((5, 4)))
