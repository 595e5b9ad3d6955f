"""Masks as files: one number a pixel, seen in the colours of a palette."""

import io

import numpy as np
from PIL import Image

from foveal.errors import FovealError


def encode_ids(ids: np.ndarray) -> bytes:
    """Return a mask as a palette PNG, in the colours of the Pascal VOC and DAVIS masks.

    Args:
        ids: (H, W) of whole numbers 0..255.

    Raises:
        FovealError: another shape or range.
    """
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size or ids.min() < 0 or ids.max() > 255:
        raise FovealError(f"a mask of shape {ids.shape} and type {ids.dtype}; give (H, W) whole numbers from 0 to 255")
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(palette().tobytes())
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def palette() -> np.ndarray:
    """Return the colours of the numbers 0..255, (256, 3) uint8.

    The bits of a number, three at a time from the lowest, are spread over red, green and blue from the highest down, so
    that small numbers have colours far apart.

    Example:
        >>> palette()[:4].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    numbers = np.arange(256)[:, None]
    channels = np.arange(3)
    colours = np.zeros((256, 3), np.int64)
    for step in range(3):
        colours |= (numbers >> (3 * step + channels) & 1) << (7 - step)
    return colours.astype(np.uint8)
