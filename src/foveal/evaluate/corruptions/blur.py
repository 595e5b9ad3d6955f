"""Blur. Each function takes (H, W, 3) float32 in 0..1."""

import math

import cv2
import numpy as np


def defocus_blur(image: np.ndarray, setting: tuple[int, float], _: np.random.Generator) -> np.ndarray:
    """Average over a disk of (radius in pixels, deviation of the blur that softens its edge)."""
    radius, edge = setting
    reach = np.arange(-max(radius, 8), max(radius, 8) + 1)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    return cv2.filter2D(image, -1, cv2.GaussianBlur(disk / disk.sum(), (side, side), sigmaX=edge))


def glass_blur(image: np.ndarray, setting: tuple[float, int, int], generator: np.random.Generator) -> np.ndarray:
    """Blur with a deviation, let every pixel take the colour of one at most so far away, so many times, blur again.

    Pixels are visited from the lower right. As in the public files, a colour is copied; the paper says exchanged.
    """
    sigma, reach, rounds = setting
    height, width = image.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    places = (rows[:, None] * width + columns).ravel()
    colour_of = list(range(height * width))
    for _ in range(rounds):
        down, right = generator.integers(-reach, reach, size=(2, len(places)))
        for place, other in zip(places.tolist(), (places + down * width + right).tolist(), strict=True):
            colour_of[place] = colour_of[other]
    shuffled = gaussian_blur(image, sigma).reshape(-1, 3)[colour_of].reshape(image.shape)
    return gaussian_blur(shuffled, sigma)


def motion_blur(image: np.ndarray, setting: tuple[int, float], generator: np.random.Generator) -> np.ndarray:
    """Smear along a line within 45 degrees of the horizontal; see `smear` for the setting."""
    return smear(image, *setting, angle=generator.uniform(-45, 45))


def zoom_blur(image: np.ndarray, factors: tuple[float, ...], _: np.random.Generator) -> np.ndarray:
    """Average the picture and itself enlarged by each of the factors."""
    return sum((zoomed(image, factor) for factor in factors), image) / (len(factors) + 1)


def gaussian_blur(
    image: np.ndarray, sigma: float, *, reach: float = 4.0, border: int = cv2.BORDER_REPLICATE
) -> np.ndarray:
    """Blur with a normal kernel cut off at `reach` deviations."""
    side = 2 * int(reach * sigma + 0.5) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=border)


def smear(image: np.ndarray, radius: int, sigma: float, *, angle: float) -> np.ndarray:
    """Average towards one side along a line, with half of a normal kernel, at whole pixels, as ImageMagick does.

    Args:
        image: (H, W) or (H, W, 3) float32.
        radius: half the length of the line, pixels.
        sigma: deviation of the kernel, pixels.
        angle: of the line, degrees clockwise from the right.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    radians = math.radians(angle)
    right = np.ceil(steps * math.cos(radians) - 0.5).astype(int)
    down = np.ceil(steps * math.sin(radians) - 0.5).astype(int)
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1), np.float32)
    np.add.at(kernel, (2 * radius + down, 2 * radius + right), weights / weights.sum())
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge about the centre, bilinear; the size stays."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, factor)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
