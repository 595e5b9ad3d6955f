"""Masks as polygons along the edges of their pixels, and polygons as masks.

Coordinates: x, y in pixels; whole numbers are edges of pixels, so that the first pixel spans 0 to 1.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from foveal.annotate.types import Box, Mask
from foveal.errors import FovealError

_MOST_EDGE = 10_000_000  # pixels of outline in one shape; some 400 MB while it is drawn


def mask_of(polygons: Sequence[np.ndarray], height: int, width: int, *, where: str) -> Mask:
    """Return what polygons cover together, as COCO's own code draws them.

    Args:
        polygons: (N, 2) each, N of at least 3.
        height: of the picture, pixels.
        width: of the picture, pixels.
        where: names the shape in errors.

    Raises:
        FovealError: coordinates that are not finite or far outside the picture.
    """
    _check(polygons, height, width, where=where)
    from pycocotools import mask as coco

    drawn = coco.frPyObjects([points.ravel().tolist() for points in polygons], height, width)
    return Mask(height, width, coco.merge(drawn)["counts"])


def _check(polygons: Sequence[np.ndarray], height: int, width: int, *, where: str) -> None:
    size, points = np.array([width, height]), np.concatenate(polygons)
    if not np.isfinite(points).all() or (points < -size).any() or (points > 2 * size).any():
        raise FovealError(
            f"{where}: a polygon with points outside the picture of {width} x {height} pixels, or that are no numbers; "
            "correct it"
        )
    if sum(np.abs(np.diff(one, axis=0, append=one[:1])).sum() for one in polygons) > _MOST_EDGE:
        raise FovealError(f"{where}: polygons whose outline is longer than {_MOST_EDGE} pixels; correct it")


def rings_of(pixels: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of a mask's connected parts, along the edges of the pixels.

    A hole is joined to the outline around it by a slit without width, so that each part is one ring.

    Args:
        pixels: (H, W) bool.

    Returns:
        (N, 2) float64 each; none of an empty mask.
    """
    if (extent := extent_of(pixels)) is None:
        return []
    left, top, width, height = map(int, extent)
    tight = pixels[top : top + height, left : left + width].astype(np.uint8)
    # In the picture of double size the border runs through pixels' centres on both sides of every edge.
    doubled = tight.repeat(2, axis=0).repeat(2, axis=1)
    found, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [_corners((contour[:, 0].astype(np.int64) + 1) // 2 + (left, top)) for contour in found]
    rings = []
    for number, (_, _, child, parent) in enumerate(tree[0]):
        if parent < 0:
            ring = outlines[number]
            while child >= 0:
                ring = joined(ring, outlines[child])
                child = tree[0][child][0]
            rings.append(ring)
    return rings


def _corners(points: np.ndarray) -> np.ndarray:
    """Leave out points that repeat the one before, and those on a straight line."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[(np.sign(before) != np.sign(after)).any(axis=1)].astype(np.float64)


def joined(ring: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return one ring of two: there and back between their nearest corners, which encloses nothing."""
    start = int(np.abs(ring - other[0]).sum(axis=1).argmin())
    there = np.concatenate([other, other[:1]])
    return np.concatenate([ring[: start + 1], there, ring[start:]])


def extent_of(pixels: np.ndarray) -> Box | None:
    """Return the smallest box around a mask (H, W) bool, or None where it is empty."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not rows.size:
        return None
    left, top = int(columns[0]), int(rows[0])
    return Box(left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top)


def outline_notes(likeness: Sequence[float]) -> list[str]:
    """Say how well masks that were written as polygons are kept.

    Args:
        likeness: of each, the IoU of what its polygons cover with it.
    """
    if not likeness or min(likeness) == 1:
        return []
    mean = sum(likeness) / len(likeness)
    least = f"{mean:.4f}, at least {min(likeness):.4f}"
    return [f"{len(likeness)} masks are written as polygons, whose IoU with them is {least}"]
