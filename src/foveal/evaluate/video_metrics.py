"""Region similarity J and contour accuracy F of masks in videos, and what is made of them a sequence.

Source: Perazzi et al., CVPR 2016, sections 4 and 5, and arXiv 1704.00675, as their public evaluation computes them.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from foveal.errors import FovealError

_BOUND = 0.008  # of the diagonal: how far apart contours may be and still match
_NUM_QUARTERS = 4


class Course(NamedTuple):
    """What becomes of an object in a sequence: mean, share of frames above 0.5, and the loss from begin to end."""

    mean: float
    recall: float
    decay: float


def region_similarity(prediction: np.ndarray, truth: np.ndarray, *, void: np.ndarray | None = None) -> float:
    """Return J, the intersection over the union of two masks; 1 where both are empty.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.
        void: (H, W) bool, pixels that do not count.
    """
    prediction, truth = _without(prediction, truth, void)
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def contour_accuracy(prediction: np.ndarray, truth: np.ndarray, *, void: np.ndarray | None = None) -> float:
    """Return F, the harmonic mean of the precision and recall of contour pixels.

    A pixel of one contour is matched when it lies in the other one, dilated by a disk with a radius of 0.008 of the
    diagonal, rounded up. Without any predicted contour the precision is 1, without a true one the recall is 1.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.
        void: (H, W) bool, pixels that do not count.
    """
    prediction, truth = _without(prediction, truth, void)
    radius = math.ceil(_BOUND * math.hypot(*truth.shape))
    found, real = contour(prediction), contour(truth)
    num_found, num_real = np.count_nonzero(found), np.count_nonzero(real)
    precision = np.count_nonzero(found & _dilated(real, radius)) / num_found if num_found else 1.0
    recall = np.count_nonzero(real & _dilated(found, radius)) / num_real if num_real else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (H, W) that differ from their right, lower, or lower right neighbour."""
    beyond = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, across = beyond[:-1, 1:], beyond[1:, :-1], beyond[1:, 1:]
    return (mask != right) | (mask != below) | (mask != across)


def course(values: np.ndarray) -> Course:
    """Sum up the values of one object, one a frame: mean, recall (share above 0.5), and decay.

    The decay is the mean of the first quarter of the frames less that of the last. The quarters share their borders, as
    in the public evaluation; unlike there, frames are counted beyond 255.

    Args:
        values: (frames,) in 0..1.

    Raises:
        FovealError: no frame.

    Example:
        >>> course(np.array([1.0, 1.0, 0.5, 0.0]))
        Course(mean=0.625, recall=0.5, decay=0.75)
    """
    if not len(values):
        raise FovealError("a sequence without a frame to measure; the first and the last do not count, give at least 3")
    borders = np.round(np.linspace(1, len(values), _NUM_QUARTERS + 1) + 1e-10).astype(int) - 1
    first, last = values[: borders[1] + 1], values[borders[-2] :]
    return Course(float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean()))


def _without(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise FovealError(
            f"masks of shapes {prediction.shape} and {truth.shape}; give two of the same height and width"
        )
    counted = True if void is None else ~void
    return prediction.astype(bool) & counted, truth.astype(bool) & counted


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    steps = np.arange(-radius, radius + 1)
    disk = (steps[:, None] ** 2 + steps[None, :] ** 2 <= radius**2).astype(np.uint8)
    return cv2.dilate(mask.astype(np.uint8), disk).astype(bool)
