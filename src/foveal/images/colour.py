"""Turn whatever Pillow decoded into upright RGB, grey or RGBA. Each conversion is a decision, written down."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from foveal.errors import BadImageError

ORIENTATION_TAG = 0x0112
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_PLAIN_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "La", "PA", "RGBA", "RGBa")


def pillow_to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a Pillow image as (H, W, 3) uint8 RGB.

    | Pillow mode | what is done |
    |---|---|
    | RGB | kept |
    | 1, L | the grey value in all three channels |
    | I;16 and its byte orders | value / 257, rounded: 65535 becomes 255 and nothing is clipped |
    | I | taken as 16-bit (as 16-bit PGM arrives); a value outside 0..65535 is refused, its range is unknown |
    | F | 0..1 becomes 0..255, rounded; a value outside 0..1 is refused, its range is unknown |
    | P | through its palette |
    | LA, RGBA, PA, or a transparent colour | composited on white: what the picture shows on a page |
    | CMYK, YCbCr, HSV | Pillow's arithmetic conversion; embedded colour profiles are not applied |

    16-bit colour reaches this function as 8-bit RGB: Pillow keeps the high byte, at most one level from value / 257.

    Raises:
        BadImageError: reason "unsupported_pixels" for other modes and for values of unknown range.
    """
    if image.mode in _SIXTEEN_BIT_MODES or image.mode in ("I", "F"):
        return wide_grey_to_rgb(np.asarray(image))
    if image.mode not in _PLAIN_MODES:
        raise BadImageError(
            "unsupported_pixels",
            f"pixel mode {image.mode} has no conversion to RGB; save the image as RGB or grey first",
        )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _on_white(image)
    return np.array(image.convert("RGB"))  # a copy: Pillow's own view is read-only


def pillow_to_grey(image: Image.Image) -> np.ndarray:
    """Return the pixels of a Pillow image as (H, W, 1): uint16 for 16-bit grey, as stored; else the `luma` of its RGB.

    Raises:
        BadImageError: as `pillow_to_rgb`.
    """
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "I":
        return _checked_range(np.asarray(image).astype(np.int64), 0, 65535).astype(np.uint16)[:, :, None]
    return luma(pillow_to_rgb(image))


def pillow_to_rgba(image: Image.Image) -> np.ndarray:
    """Return the pixels of a Pillow image with transparency as (H, W, 4) uint8, colours as stored.

    Raises:
        BadImageError: reason "wrong_channels" for an image without transparency.
    """
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        raise BadImageError(
            "wrong_channels",
            f"an image of mode {image.mode} has no alpha, asked for are 4 channels; "
            "write the 4 channels to a TIFF, or use a model of 1 or 3 channels",
        )
    return np.array(image.convert("RGBA"))


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return the grey of (H, W, 3) uint8 RGB as (H, W, 1) uint8: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded.

    In the integers that Pillow uses, so that grey stays what it was.
    """
    weighted = rgb.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)[:, :, None]


def wide_grey_to_rgb(values: np.ndarray) -> np.ndarray:
    """Return (H, W) grey of more than 8 bits as (H, W, 3) uint8; see the table at `pillow_to_rgb`."""
    if values.dtype.kind == "f":
        low, high, scale = 0.0, 1.0, 255.0
    else:
        values = values.astype(np.int64)
        low, high, scale = 0, 65535, 1 / 257
    grey = np.floor(_checked_range(values, low, high) * scale + 0.5).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _checked_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    inside = bool(((values >= low) & (values <= high)).all())  # also False for NaN
    if not inside:
        raise BadImageError(
            "unsupported_pixels",
            f"values from {values.min()} to {values.max()}; allowed are {low} to {high} "
            "in this pixel type; scale the image to 8 or 16 bit first",
        )
    return values


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)


def exif_orientation(load: Callable[[], Image.Exif]) -> int:
    """Return the EXIF orientation, 1 to 8, out of what `load` returns.

    Anything missing, out of range or damaged is 1: the picture as stored is better than no picture.
    """
    try:
        value = load().get(ORIENTATION_TAG, 1)
    except Exception:  # the border "decoding one sample"
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def swaps_sides(orientation: int) -> bool:
    """Say whether this EXIF orientation turns height into width."""
    return orientation >= 5


def upright(pixels: np.ndarray, *, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation.

    Args:
        pixels: (H, W, C) as stored in the file.
        orientation: EXIF tag 0x0112, 1 to 8: where the stored first row and first column belong (1 top left,
            2 top right, 3 bottom right, 4 bottom left, 5 left top, 6 right top, 7 right bottom, 8 left bottom).

    Returns:
        (H, W, C), or (W, H, C) for orientations 5 to 8, C-contiguous.
    """
    if swaps_sides(orientation):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
