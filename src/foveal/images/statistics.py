"""Mean and standard deviation of each channel of an image set, for its normalisation."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from foveal.errors import BadImageError, ImageSetError
from foveal.images.imageset import ImageSet
from foveal.images.ledger import listed

_FULL = 65535
_PIXELS_PER_BLOCK = 1 << 20


class ChannelStatistics(NamedTuple):
    """Of each channel over all pixels, in shares of full scale (0..1), as a card takes them."""

    mean: list[float]
    std: list[float]


def channel_statistics(images: ImageSet, *, channels: int, max_images: int | None = None) -> ChannelStatistics:
    """Return the mean and standard deviation of each channel over all pixels of a set.

    Sums are kept in integers, so the result is exact up to its last rounding and the order of the images does not
    matter. 8-bit values count as 257 times themselves beside 16-bit ones: both are shares of full scale. One image is
    in memory at a time; those that cannot be decoded are left out.

    Args:
        images: the set.
        channels: what to decode to; see `foveal.images.decode.decode`.
        max_images: take so many, evenly spread over the set; None takes all.

    Raises:
        ImageSetError: no image can be decoded, or a channel has the same value everywhere.
    """
    wanted = len(images) if max_images is None else min(max_images, len(images))
    sums, squares, count = [0] * channels, [0] * channels, 0
    bad: Counter[str] = Counter()
    for number in range(wanted):
        try:
            pixels = images.decode(number * len(images) // wanted, channels=channels)
        except BadImageError as error:
            bad[error.reason] += 1
            continue
        count += pixels.shape[0] * pixels.shape[1]
        for channel, (total, total_of_squares) in enumerate(_sums(pixels)):
            sums[channel] += total
            squares[channel] += total_of_squares
    if count == 0:
        raise ImageSetError(
            f"none of {wanted} images can be read as {channels} channels ({listed(bad)}); check the source"
        )
    variances = [square * count - total * total for total, square in zip(sums, squares, strict=True)]
    if 0 in variances:
        raise ImageSetError(
            f"channel {variances.index(0)} has the same value everywhere in {wanted} images; leave it out of the files"
        )
    return ChannelStatistics(
        [total / (count * _FULL) for total in sums], [variance**0.5 / (count * _FULL) for variance in variances]
    )


def _sums(pixels: np.ndarray) -> list[tuple[int, int]]:
    """Return, for each channel, the sum and the sum of squares of its values on the 16-bit scale."""
    scale = _FULL // np.iinfo(pixels.dtype).max
    flat = pixels.reshape(-1, pixels.shape[2])
    totals = []
    for channel in range(flat.shape[1]):
        total = total_of_squares = 0
        for start in range(0, len(flat), _PIXELS_PER_BLOCK):
            block = flat[start : start + _PIXELS_PER_BLOCK, channel].astype(np.uint64)
            total += int(block.sum())
            total_of_squares += int((block * block).sum())
        totals.append((total * scale, total_of_squares * scale * scale))
    return totals
