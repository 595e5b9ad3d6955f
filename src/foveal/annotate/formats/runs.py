"""Masks as runs: lengths of stretches of equal pixels, the first of zeros; checked before anything is made of them."""

import numpy as np

from foveal.annotate.types import Mask
from foveal.errors import FovealError

MAX_PIXELS = 100_000_000  # of a mask, as of a picture: `foveal.images.decode.DecodeLimits`
_BITS, _MORE, _SIGN = 5, 0x20, 0x10  # of a character of COCO's coding


def run_lengths(pixels: np.ndarray) -> np.ndarray:
    """Return the lengths of the stretches of equal pixels, int64, the first of zeros (0 where the first pixel is set).

    Args:
        pixels: (N,) bool.

    Example:
        >>> run_lengths(np.array([True, True, False])).tolist()
        [0, 2, 1]
    """
    edges = np.flatnonzero(np.diff(pixels.astype(np.int8), prepend=0))
    return np.diff(edges, prepend=0, append=len(pixels))


def pixels_of(lengths: np.ndarray, height: int, width: int, *, where: str) -> np.ndarray:
    """Return (height, width) bool from the runs of its rows, one after the other.

    Args:
        lengths: int64, the first of zeros.
        height: pixels.
        width: pixels.
        where: names the mask in errors.

    Raises:
        FovealError: runs below 0, or that are not of as many pixels.
    """
    check_runs(lengths, height, width, where=where)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(height, width)


def check_runs(lengths: np.ndarray, height: int, width: int, *, where: str) -> None:
    """Refuse runs that are not those of so many pixels, and sizes that no picture has."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise FovealError(f"{where}: a mask of {width} x {height} pixels; allowed are 1 to {MAX_PIXELS} in all")
    if ((lengths < 0) | (lengths > MAX_PIXELS)).any() or lengths.sum() != height * width:
        raise FovealError(
            f"{where}: its runs are not those of a mask of {width} x {height} pixels; it is damaged, export it again"
        )


def coco_runs(mask: Mask, *, where: str) -> np.ndarray:
    """Return the runs of a mask's columns, int64, from COCO's compressed coding, without the pixels.

    Source: the public description of the format: 5 bits a character, from 48, the lowest first; from the fourth run on
    the difference to the run before the last.

    Raises:
        FovealError: characters that are none of the coding's, or a coding that is cut off.
    """
    codes = np.frombuffer(mask.counts, np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    last = np.flatnonzero(codes & _MORE == 0)
    starts = np.concatenate([[0], last[:-1] + 1])
    sizes = last - starts + 1
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & _MORE or sizes.max() > 7:
        raise FovealError(f"{where}: run lengths that are no COCO coding; it is damaged, export it again")
    places = np.arange(codes.size) - np.repeat(starts, sizes)
    found = np.add.reduceat((codes & 0x1F) << (_BITS * places), starts)
    found -= np.where(codes[last] & _SIGN, np.int64(1) << (_BITS * sizes), 0)
    found[1::2] = np.cumsum(found[1::2])
    found[2::2] = np.cumsum(found[2::2])
    return found


def check_mask(mask: Mask, *, where: str) -> None:
    """Refuse a mask whose runs are not those of its size: what decodes masks does not look.

    Raises:
        FovealError: it is damaged, or made to be.
    """
    check_runs(coco_runs(mask, where=where), mask.height, mask.width, where=where)
