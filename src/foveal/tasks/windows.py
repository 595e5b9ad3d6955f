"""Sliding windows over a picture of any size, in memory that its height does not change.

Shapes: C channels, K maps, H W pixels.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from foveal.errors import FovealError

CROP_SIZE, STRIDE = 512, 341  # of the published segmentation protocol, pixels


def window_starts(side: int, *, crop_size: int, stride: int) -> list[int]:
    """Return where windows begin along a side: every `stride` pixels, the last moved back to end with the picture.

    Example:
        >>> window_starts(1000, crop_size=512, stride=341)
        [0, 341, 488]
    """
    if not 0 < stride <= crop_size:
        raise FovealError(f"windows of {crop_size} pixels every {stride}; give 0 < stride <= crop_size")
    count = max(side - crop_size + stride - 1, 0) // stride + 1
    return [max(min(number * stride, side - crop_size), 0) for number in range(count)]


def slide(
    scores: Callable[[Tensor], Tensor], image: Tensor, *, crop_size: int = CROP_SIZE, stride: int = STRIDE
) -> Iterator[tuple[int, Tensor]]:
    """Run a function on windows of a picture and yield its averaged maps, band by band from the top.

    A band is yielded once no later window reaches it, so that K maps of one row of windows is all that is kept.

    Args:
        scores: maps (1, C, h, w) to (1, K, h, w).
        image: (C, H, W).
        crop_size: side of a window, pixels; smaller where the picture is.
        stride: from one window to the next, pixels.

    Yields:
        The first row of a band, and its maps (K, rows, W); where windows overlap, their mean.
    """
    height, width = image.shape[1:]
    rows = window_starts(height, crop_size=crop_size, stride=stride)
    columns = window_starts(width, crop_size=crop_size, stride=stride)
    total = counts = torch.zeros(0, 0, 0)
    for number, top in enumerate(rows):
        band = image[:, top : top + crop_size]
        for left in columns:
            found = scores(band[None, :, :, left : left + crop_size])[0]
            if not total.numel():
                total = found.new_zeros(len(found), band.shape[1], width)
                counts = found.new_zeros(1, band.shape[1], width)
            total[:, :, left : left + found.shape[2]] += found
            counts[:, :, left : left + found.shape[2]] += 1
        finished = (rows[number + 1] if number + 1 < len(rows) else height) - top
        yield top, total[:, :finished] / counts[:, :finished]
        total, counts = (_moved_up(part, finished) for part in (total, counts))


def _moved_up(values: Tensor, rows: int) -> Tensor:
    """Return maps (K, h, W) without their first rows, zeros after the last."""
    moved = torch.zeros_like(values)
    moved[:, : values.shape[1] - rows] = values[:, rows:]
    return moved
