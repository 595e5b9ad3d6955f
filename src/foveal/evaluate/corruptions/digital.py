"""Digital corruptions. Each function takes (H, W, 3) float32 in 0..1."""

import io

import cv2
import numpy as np
from PIL import Image

from foveal.evaluate.corruptions.blur import gaussian_blur
from foveal.images.decode import decode


def contrast(image: np.ndarray, share: float, _: np.random.Generator) -> np.ndarray:
    """Keep a share of the distance from the mean colour."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * share + mean


def elastic_transform(
    image: np.ndarray, setting: tuple[float, float, float], generator: np.random.Generator
) -> np.ndarray:
    """Move three points of the picture at random, then every pixel by a smooth field.

    Args:
        image: the picture.
        setting: pixels: strength of the field, deviation of the blur that smooths it, and the most that a point moves.
        generator: draws both.
    """
    strength, sigma, most = setting
    height, width = image.shape[:2]
    centre, reach = np.array([height, width]) // 2, min(height, width) // 3
    points = (centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = points + generator.uniform(-most, most, points.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(points, moved)
    image = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    right, down = (
        strength * gaussian_blur(field, sigma, reach=3.0, border=cv2.BORDER_REFLECT)
        for field in generator.uniform(-1, 1, (2, height, width)).astype(np.float32)
    )
    return cv2.remap(image, columns + right, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def pixelate(image: np.ndarray, share: float, _: np.random.Generator) -> np.ndarray:
    """Shrink the sides to a share and enlarge them again, by boxes."""
    picture = Image.fromarray(to_bytes(image))
    small = picture.resize((int(picture.width * share), int(picture.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BOX)) / np.float32(255)


def jpeg_compression(image: np.ndarray, quality: int, _: np.random.Generator) -> np.ndarray:
    """Compress as JPEG of this quality."""
    stream = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(stream, "JPEG", quality=quality)
    return decode(stream.getvalue()) / np.float32(255)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Return values in 0..1, clipped, as uint8."""
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)
