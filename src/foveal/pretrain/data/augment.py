"""Photometric operations on one small crop: integers in, integers out, rounded and clipped after each operation.

On RGB uint8, unless an operation says that it takes any number of channels C and uint16 too.

The formulas are those of torchvision's ColorJitter, RandomGrayscale, GaussianBlur and RandomSolarize. Differences that
the tests bound: Pillow truncates where these round (1 grey level), and hue is quantised to 1/256 of a turn as in
Pillow's 8-bit HSV.

Legend: H W pixels of the crop.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

Image = np.ndarray  # (H, W, 3) uint8, or (H, W, C) uint8 or uint16

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
_IDENTITY = np.eye(3, 4)
_GREY_ROWS = np.tile(np.array([*GREY_WEIGHTS, 0.0]), (3, 1))


def hflip(image: Image) -> Image:
    """Return the image mirrored left to right. Image (H, W, C), any integers."""
    return cv2.flip(image, 1).reshape(image.shape)  # OpenCV drops an axis of one channel


def adjust_brightness(image: Image, factor: float) -> Image:
    """Return factor * image: a blend with black. Image (H, W, 3); factor >= 0."""
    return cv2.transform(image, factor * _IDENTITY)


def adjust_contrast(image: Image, factor: float) -> Image:
    """Return factor * image + (1 - factor) * m with m the rounded mean of the grey image. Image (H, W, 3)."""
    mean = round(sum(weight * level for weight, level in zip(GREY_WEIGHTS, cv2.mean(image), strict=False)))
    matrix = factor * _IDENTITY
    matrix[:, 3] = (1 - factor) * mean
    return cv2.transform(image, matrix)


def adjust_channels(image: Image, factors: Sequence[float], *, around_mean: bool) -> Image:
    """Return factor_c * image_c + (1 - factor_c) * m_c for each channel c.

    With m_c the mean of the channel this is contrast, with m_c = 0 brightness. Image (H, W, C), uint8 or uint16.
    """
    factor = np.asarray(factors, dtype=np.float32)
    pixels = image * factor
    if around_mean:
        pixels += ((1 - factor) * image.mean(axis=(0, 1))).astype(np.float32)
    return np.clip(np.rint(pixels), 0, np.iinfo(image.dtype).max).astype(image.dtype)


def adjust_saturation(image: Image, factor: float) -> Image:
    """Return factor * image + (1 - factor) * grey, pixel by pixel. Image (H, W, 3)."""
    return cv2.transform(image, factor * _IDENTITY + (1 - factor) * _GREY_ROWS)


def adjust_hue(image: Image, turn: float) -> Image:
    """Return the image with its hue shifted by `turn` of a full circle in HSV. Image (H, W, 3); turn in [-0.5, 0.5].

    Hue and shift are held in 1/256 of a circle: a strongly coloured pixel is off by up to 6 grey levels against
    real numbers, 1 in the mean; grey pixels are untouched.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    height, width, _ = hsv.shape
    shift = np.zeros(3 * width, dtype=np.uint8)
    shift[::3] = round(turn * 256) % 256
    rows = hsv.reshape(height, 3 * width)
    rows += shift  # wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def to_grayscale(image: Image) -> Image:
    """Return the luma of the image in all three channels. Image (H, W, 3)."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: Image, *, sigma: float, kernel_size: int) -> Image:
    """Return the image blurred by a separable Gaussian, mirrored at the borders without repeating the edge pixel.

    The weights are those of `gaussian_kernel`; the taps that round to 0 are cut off.

    Args:
        image: (H, W, C), uint8 or uint16.
        sigma: Standard deviation in pixels, > 0.
        kernel_size: Taps, odd.
    """
    kernel = np.trim_zeros(gaussian_kernel(sigma, kernel_size))
    if len(kernel) == 1:
        return image
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def gaussian_kernel(sigma: float, kernel_size: int) -> np.ndarray:
    """Return the weights (kernel_size,) of a Gaussian of standard deviation sigma > 0, in units of 1/256.

    OpenCV's fast 8-bit path computes in these units. The sum is kept at 1 by the centre, else a blur would brighten or
    darken the image.
    """
    tail = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(1, kernel_size // 2 + 1)]
    unit = 256 / (1 + 2 * sum(tail))
    side = [round(unit * value) for value in tail]
    return np.array([*reversed(side), 256 - 2 * sum(side), *side]) / 256


def solarize(image: Image, threshold: int) -> Image:
    """Return the image with each value v >= threshold replaced by 255 - v. Image (H, W, 3); threshold 0 to 256."""
    table = np.arange(256, dtype=np.uint8)
    table[threshold:] = 255 - table[threshold:]
    return cv2.LUT(image, table)
