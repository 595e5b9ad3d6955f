import colorsys

import numpy as np
import pytest

from foveal.tasks.crops import change_exposure, distort_colours, largest_share, prepared_crop, random_crop, turned
from foveal.tasks.protocols import FitSettings


class Draws(np.random.Generator):
    """A generator whose draws are written down: uniform ones as shares of the range from low to high."""

    def __init__(self, *uniform: object, random: list[object]) -> None:
        super().__init__(np.random.PCG64(0))
        self._uniform, self._random = iter(uniform), iter(random)

    def uniform(self, low: object = 0.0, high: object = 1.0, size: object = None) -> np.ndarray:  # type: ignore[override]
        return np.asarray(low) + np.asarray(next(self._uniform)) * (np.asarray(high) - np.asarray(low))

    def random(self, size: object = None) -> np.ndarray:  # type: ignore[override]
        return np.asarray(next(self._random))


def picture(height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_crops_keep_picture_and_mask_together() -> None:
    ids = np.arange(40 * 30).reshape(40, 30) % 200
    pixels = np.repeat(ids[:, :, None], 3, axis=2).astype(np.uint8)
    settings = FitSettings(crop_size=(17, 23), scales=(1, 1), distort=False)
    for seed in range(5):
        found, mask = random_crop(pixels, ids, settings, np.random.default_rng(seed))
        assert found.shape == (17, 23, 3)
        np.testing.assert_array_equal(found[:, :, 1], mask)


def test_outside_of_a_small_picture_nothing_counts() -> None:
    settings = FitSettings(crop_size=(50, 23), scales=(1, 1), distort=False)
    colours = {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    masks, metres = np.zeros((40, 30), np.int64), np.ones((40, 30), np.float32)
    image, mask = prepared_crop(picture(), masks, settings, np.random.default_rng(0), **colours)
    assert (mask.shape, (mask[:40] == 0).all(), (mask[40:] == -1).all()) == ((50, 23), True, True)
    pixels, _ = random_crop(picture(), masks, settings, np.random.default_rng(0))
    assert (pixels.shape, image.shape, image.dtype) == ((40, 23, 3), (3, 50, 23), np.float32)
    np.testing.assert_allclose(image[2, :40], (pixels[:, :, 2] / 255 - 0.6) / 0.3, atol=1e-5)
    assert (image[:, 40:] == 0).all()  # the mean colour, not black
    depth = prepared_crop(picture(), metres, settings, np.random.default_rng(0), **colours)[1]
    assert (depth[:40] == 1).all()
    assert (depth[40:] == 0).all()


def test_crops_full_of_one_class_are_drawn_again() -> None:
    ids = np.zeros((60, 60), np.int64)
    ids[:, 30:] = 1
    shares = {}
    for limit in (1.0, 0.75):
        settings = FitSettings(crop_size=20, scales=(1, 1), distort=False, max_class_share=limit)
        crops = [
            random_crop(np.zeros((60, 60, 3), np.uint8), ids, settings, np.random.default_rng(s)) for s in range(40)
        ]
        shares[limit] = np.mean([largest_share(mask) >= 0.75 for _, mask in crops])
    # A window is mixed enough in about 9 of 41 places: 1 draw fails in 78 %, 11 draws fail in 7 %.
    assert shares[1.0] > 0.6
    assert shares[0.75] < 0.25


def test_share_is_of_the_pixels_that_count() -> None:
    assert largest_share(np.array([[0, 0, 1, -1, -1]])) == pytest.approx(2 / 3)
    assert largest_share(np.full((2, 2), -1)) == 1


def test_brightness_then_contrast_follow_the_formula() -> None:
    pixels = picture()
    found = distort_colours(pixels, Draws((1.0, 1.0, 0.5, 0.5), random=[(0.1, 0.1, 0.9, 0.9), 0.2]))
    np.testing.assert_array_equal(found, np.clip(np.rint(np.clip(pixels + 32.0, 0, 255) * 1.5), 0, 255))


def test_contrast_comes_before_or_after_saturation() -> None:
    pixels = np.array([[[100, 200, 220]]], np.uint8)  # 1.5 times as bright all but red is clipped
    first, last = (
        distort_colours(pixels, Draws((0.5, 1.0, 0.0, 0.5), random=[(0.9, 0.1, 0.1, 0.9), order]))[0, 0].tolist()
        for order in (0.2, 0.8)
    )
    assert first == pytest.approx([202, 255, 255], abs=2)  # 150, 255, 255, then half as saturated
    assert last == pytest.approx([240, 255, 255], abs=2)  # 160, 210, 220, then brighter


def test_saturation_and_hue_are_those_of_hsv() -> None:
    pixels = picture()
    found = distort_colours(pixels, Draws((0.5, 0.5, 0.1, 1.0), random=[(0.9, 0.9, 0.1, 0.1), 0.2]))
    for before, after in zip(pixels.reshape(-1, 3)[:50], found.reshape(-1, 3), strict=False):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        wanted = np.array(colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation * 0.6, value)) * 255
        assert np.abs(after - wanted).max() <= 7  # hue is held in 1/256 of a turn


def test_nothing_chosen_changes_nothing() -> None:
    pixels = picture()
    draws = Draws((1.0, 1.0, 1.0, 1.0), random=[(0.9, 0.9, 0.9, 0.9), 0.2])
    np.testing.assert_array_equal(distort_colours(pixels, draws), pixels)
    np.testing.assert_array_equal(change_exposure(pixels, Draws(random=[0.7])), pixels)


def test_exposure_follows_the_formula_for_any_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 4, 2), dtype=np.uint16)
    found = change_exposure(pixels, Draws((1.0, 0.0), (0.5, 1.0), random=[0.2]))
    wanted = np.clip((pixels / 65535) ** 1.1 * 0.75 * np.array([1.0, 1.1]) * 65535, 0, 65535)
    assert np.abs(found - wanted).max() <= 1


def test_depth_turns_with_its_picture() -> None:
    depth = np.zeros((41, 41), np.float32)
    depth[5:36, 18:23] = 2.5
    pixels = np.where(depth[:, :, None] > 0, 200, 0).astype(np.uint8).repeat(2, axis=2)
    found, moved = turned(pixels, depth, 90.0)
    np.testing.assert_array_equal(moved, depth.T)
    np.testing.assert_array_equal(found[:, :, 1], pixels[:, :, 1].T)
    assert (turned(pixels, np.ones_like(depth), 45.0)[1][0, 0], moved.dtype) == (0, np.float32)
