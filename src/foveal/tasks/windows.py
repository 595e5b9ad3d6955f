"""Sliding windows over a picture of any size, in memory that its height does not change.

Shapes: K maps, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.tasks.dense import resized

CROP_SIZE, STRIDE = 512, 341  # of the published segmentation protocol, pixels
_BAND_VALUES = 16_000_000  # of a band of resized maps: 64 MB


def check_windows(crop_size: int | None, stride: int | None) -> None:
    """Refuse windows that would leave gaps, and a stride without windows."""
    if crop_size is None and stride is not None:
        raise FovealError(f"stride={stride} without crop_size; give both, or neither")
    if crop_size is not None and not 0 < (stride or 1) <= crop_size:
        raise FovealError(f"windows of {crop_size} pixels every {stride}; give 0 < stride <= crop_size")


def window_starts(side: int, *, crop_size: int, stride: int) -> list[int]:
    """Return where windows begin along a side: every `stride` pixels, the last moved back to end with the picture.

    Example:
        >>> window_starts(1000, crop_size=512, stride=341)
        [0, 341, 488]
    """
    check_windows(crop_size, stride)
    count = max(side - crop_size + stride - 1, 0) // stride + 1
    return [max(min(number * stride, side - crop_size), 0) for number in range(count)]


def slide(
    scores: Callable[[slice, slice], Tensor],
    shape: tuple[int, int],
    *,
    crop_size: int = CROP_SIZE,
    stride: int = STRIDE,
) -> Iterator[Tensor]:
    """Run a function on windows of a picture and yield its averaged maps, band by band from the top.

    A band is yielded once no later window reaches it, so that K maps of one row of windows is all that is kept.

    Args:
        scores: rows and columns of a window to its maps (K, h, w).
        shape: height and width of the picture, pixels.
        crop_size: side of a window, pixels; smaller where the picture is.
        stride: from one window to the next, pixels.

    Yields:
        Maps (K, rows, W); where windows overlap, their mean.
    """
    height, width = shape
    rows = window_starts(height, crop_size=crop_size, stride=stride)
    columns = window_starts(width, crop_size=crop_size, stride=stride)
    total = counts = torch.zeros(0, 0, 0)
    for number, top in enumerate(rows):
        for left in columns:
            found = scores(slice(top, min(top + crop_size, height)), slice(left, min(left + crop_size, width)))
            if not total.numel():
                total = found.new_zeros(len(found), found.shape[1], width)
                counts = found.new_zeros(1, found.shape[1], width)
            total[:, :, left : left + found.shape[2]] += found
            counts[:, :, left : left + found.shape[2]] += 1
        finished = (rows[number + 1] if number + 1 < len(rows) else height) - top
        yield total[:, :finished] / counts[:, :finished]
        total, counts = (_moved_up(part, finished) for part in (total, counts))


def resized_bands(
    bands: Iterable[Tensor], *, shape: tuple[int, int], size: tuple[int, int], max_values: int = _BAND_VALUES
) -> Iterator[Tensor]:
    """Resize maps that come in bands from the top, and yield them in bands of all their columns.

    Together these are `resized` of the whole maps, of which only the rows that are still needed are kept.

    Args:
        bands: maps (K, rows, w), h rows in all.
        shape: (h, w) of the whole maps.
        size: (H, W) to which they are brought.
        max_values: of a band that is yielded, unless one row has more.
    """
    if shape == size:
        yield from bands
        return
    places = ((torch.arange(size[0]) + 0.5) * (shape[0] / size[0]) - 0.5).clamp(min=0)
    above = places.long()
    below = (above + 1).clamp(max=shape[0] - 1)
    share = places - above
    kept, first, done = torch.zeros(0, 0, shape[1]), 0, 0  # rows from number `first`; output rows yielded
    for band in bands:
        kept = torch.cat([kept, band], dim=1) if kept.shape[1] else band
        ready = int(torch.searchsorted(below, first + kept.shape[1]))  # output rows whose lower neighbour is there
        rows = max(max_values // (len(kept) * size[1]), 1)
        for top in range(done, ready, rows):
            part = slice(top, min(top + rows, ready))
            mixed = torch.lerp(kept[:, above[part] - first], kept[:, below[part] - first], share[part, None])
            yield resized(mixed[None], (mixed.shape[1], size[1]))[0]
        done = ready
        if done < size[0]:
            needed = min(int(above[done]), first + kept.shape[1])
            kept, first = kept[:, needed - first :], needed


def _moved_up(values: Tensor, rows: int) -> Tensor:
    """Return maps (K, h, W) without their first rows, zeros after the last."""
    moved = torch.zeros_like(values)
    moved[:, : values.shape[1] - rows] = values[:, rows:]
    return moved
