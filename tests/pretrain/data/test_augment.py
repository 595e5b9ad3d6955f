"""Each photometric operation against its formula in float64, written a second time, and against Pillow."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from foveal.pretrain.data import augment

skimage_data = pytest.importorskip("skimage.data")

GREY = np.array([0.299, 0.587, 0.114])
FACTORS = (0.6, 0.73, 0.999, 1.0, 1.2, 1.4)
MODES = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """Photographs in small, 61 x 47 pixels, and noise, which is the worst case."""
    photos = [Image.fromarray(getattr(skimage_data, name)()) for name in ("astronaut", "coffee", "chelsea")]
    noise = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    return [np.array(photo.resize((47, 61))) for photo in photos] + [noise]


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255)


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    difference = np.abs(a.astype(float) - b.astype(float))
    return difference.mean(), difference.max()


def formula(name: str, image: np.ndarray, factor: float) -> np.ndarray:
    pixels = image.astype(float)
    grey = rounded(pixels @ GREY)
    other = {"brightness": 0.0, "contrast": np.floor(grey.mean() + 0.5), "saturation": grey[..., None]}[name]
    return rounded(factor * pixels + (1 - factor) * other)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", FACTORS)
def test_blends_follow_their_formula(crops: list[np.ndarray], name: str, factor: float) -> None:
    """Within 1 level: OpenCV holds the factors in 1/1024, and the grey values are not rounded in between."""
    for image in crops:
        ours = getattr(augment, f"adjust_{name}")(image, factor)
        mean, worst = distance(ours, formula(name, image, factor))
        assert ours.dtype == np.uint8
        assert worst <= 1
        assert mean < 0.25


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", FACTORS)
def test_blends_are_those_of_pillow(crops: list[np.ndarray], name: str, factor: float) -> None:
    """Within 2 levels: Pillow truncates (1 level at most, half a level in the mean) where these round."""
    for image in crops:
        theirs = np.asarray(MODES[name](Image.fromarray(image)).enhance(factor))
        mean, worst = distance(getattr(augment, f"adjust_{name}")(image, factor), theirs)
        assert worst <= 2
        assert mean < 1.05


def shifted_hue(image: np.ndarray, turn: float) -> np.ndarray:
    def shift(pixel: np.ndarray) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    return rounded(255 * np.array([[shift(pixel) for pixel in row] for row in image[::2, ::2]]))


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.04, 0.0, 0.013, 0.1])
def test_hue_follows_real_numbers_within_its_quantisation(crops: list[np.ndarray], turn: float) -> None:
    """A step of 1/256 circle is 6 levels at full chroma: half of it for the hue, half for the shift, rounding, S."""
    for image in crops:
        mean, worst = distance(augment.adjust_hue(image, turn)[::2, ::2], shifted_hue(image, turn))
        assert worst <= 10
        assert mean < 1.1


def test_hue_turns_red_into_green_and_leaves_grey_alone() -> None:
    image = np.array([[[255, 0, 0], [90, 90, 90]]], dtype=np.uint8)
    assert distance(augment.adjust_hue(image, 1 / 3), np.array([[[0, 255, 0], [90, 90, 90]]]))[1] <= 3
    assert augment.adjust_hue(image, 1 / 3)[0, 1].tolist() == [90, 90, 90]
    assert image[0, 0].tolist() == [255, 0, 0]


def test_grayscale_is_luma_in_three_channels(crops: list[np.ndarray]) -> None:
    for image in crops:
        ours = augment.to_grayscale(image)
        assert np.all(ours == ours[..., :1])
        assert distance(ours[..., 0], rounded(image @ GREY))[1] <= 1


def blurred(image: np.ndarray, sigma: float, kernel_size: int) -> np.ndarray:
    radius = kernel_size // 2
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    padded = np.pad(image.astype(float), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    rows = sum(taps[k] * padded[k : k + image.shape[0]] for k in range(kernel_size))
    return rounded(sum(taps[k] * rows[:, k : k + image.shape[1]] for k in range(kernel_size)))


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
@pytest.mark.parametrize("sigma", [0.1, 0.28, 0.3, 0.41, 0.5, 1.0, 1.4, 2.0])
def test_blur_follows_its_formula(crops: list[np.ndarray], kernel_size: int, sigma: float) -> None:
    """Within 2 levels, and without brightening or darkening: taps are rounded to 1/256 with their sum kept."""
    for image in crops:
        ours = augment.gaussian_blur(image, sigma=sigma, kernel_size=kernel_size)
        theirs = blurred(image, sigma, kernel_size)
        mean, worst = distance(ours, theirs)
        assert worst <= 2
        assert mean < 0.5
        assert abs(ours.astype(float).mean() - theirs.mean()) < 0.02


def test_blur_keeps_a_flat_image_and_accepts_one_pixel() -> None:
    for shape in ((5, 7, 3), (1, 1, 3)):
        flat = np.full(shape, 201, dtype=np.uint8)
        assert np.array_equal(augment.gaussian_blur(flat, sigma=1.3, kernel_size=9), flat)


@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
def test_solarize_is_that_of_pillow(crops: list[np.ndarray], threshold: int) -> None:
    for image in crops:
        theirs = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=threshold))
        assert np.array_equal(augment.solarize(image, threshold), theirs)


def test_hflip_mirrors_left_and_right(crops: list[np.ndarray]) -> None:
    for image in crops:
        assert np.array_equal(augment.hflip(image), image[:, ::-1])
