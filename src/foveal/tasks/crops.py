"""Random crops of pictures with their masks or depth, as the published protocols draw them.

Shapes: C channels, H W pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from foveal.images.preprocess import normalise, resize, short_side_shape, sides
from foveal.tasks.protocols import FitSettings
from foveal.tasks.segment import IGNORED

_REDRAWN = 10
_LARGEST_TURN = 2.5  # degrees


def prepared_crop(
    pixels: np.ndarray,
    target: np.ndarray,
    settings: FitSettings,
    generator: np.random.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random crop, normalised (C, H, W) float32, and its answer, both filled up to `settings.crop_size`.

    As published, a crop that is smaller is filled below and at the right after it was normalised: with zeros, which are
    the mean colour, and with what does not count. See `random_crop` and `normalise`.
    """
    assert settings.crop_size is not None
    pixels, target = random_crop(pixels, target, settings, generator)
    height, width = sides(settings.crop_size)
    margins = ((0, height - target.shape[0]), (0, width - target.shape[1]))
    image = normalise(pixels, mean=tuple(mean), std=tuple(std))
    outside = IGNORED if target.dtype.kind == "i" else 0
    return np.pad(image, ((0, 0), *margins)), np.pad(target, margins, constant_values=outside)


def random_crop(
    pixels: np.ndarray, target: np.ndarray, settings: FitSettings, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resize by a random factor, cut a window out, mirror half of the time, distort.

    Masks: a window of which one class fills `settings.max_class_share` is drawn again, and colours are distorted by
    `distort_colours`. Depth: the picture is first turned half of the time, and colours change by `change_exposure`.

    Args:
        pixels: (H, W, C) uint8 or uint16.
        target: (H, W), class numbers as integers, or depth as float32.
        settings: see there.
        generator: of everything drawn.

    Returns:
        Both at `settings.crop_size`, or smaller where the picture is.
    """
    assert settings.crop_size is not None
    masks = target.dtype.kind == "i"
    short = settings.size or min(target.shape)
    pixels, target = sized(pixels, target, max(round(short * generator.uniform(*settings.scales)), 1))
    if settings.distort and not masks and generator.random() < 0.5:
        pixels, target = turned(pixels, target, generator.uniform(-_LARGEST_TURN, _LARGEST_TURN))
    shape = sides(settings.crop_size)
    top, left = _window(target, shape, settings.max_class_share if masks else 1.0, generator)
    pixels, target = (part[top : top + shape[0], left : left + shape[1]] for part in (pixels, target))
    if generator.random() < 0.5:
        pixels, target = pixels[:, ::-1], target[:, ::-1]
    if settings.distort:
        pixels = (distort_colours if masks else change_exposure)(np.ascontiguousarray(pixels), generator)
    return pixels, target


def sized(pixels: np.ndarray, target: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Bring a picture, and its answer by nearest neighbours, to a short side."""
    if size is None or size == min(target.shape):
        return pixels, target
    height, width = short_side_shape(*target.shape, size=size)
    rows = ((np.arange(height) + 0.5) * target.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * target.shape[1] / width).astype(int)
    return resize(pixels, height=height, width=width), target[rows][:, columns]


def largest_share(ids: np.ndarray) -> float:
    """Return the share of its most frequent class among the pixels of a mask that count; 1 where none does."""
    counts = np.bincount(ids[ids != IGNORED].ravel())
    return counts.max() / counts.sum() if counts.size else 1.0


def turned(pixels: np.ndarray, depth: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn a picture (bilinear) and its depth (nearest) about their centre; what comes in is black and not known."""
    height, width = depth.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    channels = [
        cv2.warpAffine(np.ascontiguousarray(pixels[:, :, channel]), matrix, (width, height), flags=cv2.INTER_LINEAR)
        for channel in range(pixels.shape[2])
    ]
    return np.stack(channels, axis=2), cv2.warpAffine(depth, matrix, (width, height), flags=cv2.INTER_NEAREST)


def distort_colours(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a picture (H, W, C) with brightness, contrast, saturation and hue changed, each half of the time.

    Brightness by up to 32 / 255 of the range, contrast and saturation by factors of 0.5 to 1.5, hue by up to a tenth of
    a turn; contrast first or last. Values are rounded and clipped after each. Saturation and hue (of HSV) are for RGB
    uint8 alone.
    """
    strengths = generator.uniform((-32 / 255, 0.5, 0.5, -0.1), (32 / 255, 1.5, 1.5, 0.1))
    chosen = generator.random(4) < 0.5
    shift, factor, saturation, hue = np.where(chosen, strengths, (0.0, 1.0, 1.0, 0.0))
    contrast_first = generator.random() < 0.5
    full = np.iinfo(pixels.dtype).max
    pixels = _rounded(pixels + shift * full, pixels.dtype)
    if contrast_first:
        pixels = _rounded(pixels * factor, pixels.dtype)
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3 and chosen[2:].any():
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL).astype(np.float32)
        hsv *= np.array([1, saturation, 1], dtype=np.float32)
        hsv[:, :, 0] = np.rint(hsv[:, :, 0] + hue * 256) % 256  # a turn is 256
        pixels = cv2.cvtColor(_rounded(hsv, np.dtype(np.uint8)), cv2.COLOR_HSV2RGB_FULL)
    return pixels if contrast_first else _rounded(pixels * factor, pixels.dtype)


def change_exposure(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a picture (H, W, C), half of the time with another exposure: (x ** gamma) x brightness x colour.

    On values from 0 to 1, gamma 0.9 to 1.1, brightness 0.75 to 1.25, and for each channel a factor of 0.9 to 1.1
    (arXiv 2011.14141; the code that the authors fit depth heads with applies gamma to values up to 255).
    """
    if generator.random() >= 0.5:
        return pixels
    gamma, brightness = generator.uniform((0.9, 0.75), (1.1, 1.25))
    colours = generator.uniform(0.9, 1.1, pixels.shape[2])
    full = np.iinfo(pixels.dtype).max
    values = (pixels / np.float32(full)) ** np.float32(gamma)
    return _rounded(values * (full * brightness * colours), pixels.dtype)


def _window(
    target: np.ndarray, shape: tuple[int, int], max_class_share: float, generator: np.random.Generator
) -> tuple[int, int]:
    """Return the top left pixel of a window, drawn again while one class fills too much of it."""
    highest = [max(length - side, 0) + 1 for length, side in zip(target.shape, shape, strict=True)]
    for _ in range(_REDRAWN + 1):
        top, left = (int(start) for start in generator.integers(highest))
        if (
            max_class_share >= 1
            or largest_share(target[top : top + shape[0], left : left + shape[1]]) < max_class_share
        ):
            break
    return top, left


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.clip(np.rint(values), 0, np.iinfo(dtype).max).astype(dtype)
