"""Semantic segmentation by a head on frozen features: mean intersection over union.

Source: arXiv 2304.07193, section 7.4. Shapes: n test pictures, K classes, H W pixels.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveal.evaluate.multi_scale import predict_at_scales
from foveal.evaluate.per_picture import measured_with, rows_of_pictures
from foveal.evaluate.results import Measure, measured
from foveal.features.batches import Progress
from foveal.tasks.predict import Predictor
from foveal.tasks.samples import DenseSet
from foveal.tasks.segment import IGNORED


class Segmentation(NamedTuple):
    """What was measured, and the confusion matrix (K, K) int64 of pixels: rows are true classes, columns predicted."""

    measures: list[Measure]
    confusion: np.ndarray


def run(
    predictor: Predictor,
    test: DenseSet,
    *,
    name: str = "",
    size: int | None = None,
    flip: bool = False,
    crop_size: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    seed: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Segmentation:
    """Measure a segmentation head on test pictures.

    Args:
        predictor: the head on its backbone.
        test: pictures with masks.
        name: in front of the metrics, such as "linear".
        size: see `Predictor.predict`, also for `flip`, `crop_size` and `stride`.
        flip: see there.
        crop_size: see there.
        stride: see there.
        scales: of the size; other than 1, probabilities are averaged over them, see `predict_at_scales`.
        seed: of the intervals, which draw whole pictures.
        state: file from which an interrupted measurement goes on; see `rows_of_pictures`.
        progress: called with (pictures done, pictures in all).

    Returns:
        mIoU and pixel accuracy, then IoU of every class that occurs, in percent.

    Raises:
        BadImageError: a picture or mask that cannot be used; the file is named.
        FovealError: a state of another measurement.
    """
    classes = predictor.head.card.classes
    how: dict[str, Any] = {"size": size, "flip": flip, "crop_size": crop_size, "stride": stride}

    def matrix_of(index: int) -> np.ndarray:
        pixels, target = test.load(index, channels=predictor.model.card.backbone.channels)
        if tuple(scales) == (1.0,):
            found = predictor.predict(pixels, **how)
        else:
            found = predict_at_scales(predictor, pixels, scales=scales, **how)
        return confusion_matrix(target, found, num_classes=len(classes)).astype(np.int32)

    stamp = f"{measured_with(predictor, test)} {how} {tuple(scales)}" if state else ""
    matrices = rows_of_pictures(len(test), matrix_of, state=state, stamp=stamp, progress=progress)
    prefix = f"{name} " if name else ""
    return Segmentation(measures_of(matrices, classes, prefix=prefix, seed=seed), matrices.sum(axis=0, dtype=np.int64))


def confusion_matrix(target: np.ndarray, found: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Return the pixels (K, K) int64 of each true class (rows) that were given each class (columns).

    Args:
        target: (H, W), `IGNORED` where a pixel does not count.
        found: (H, W).
        num_classes: K.
    """
    counted = target != IGNORED
    pairs = target[counted].astype(np.int64) * num_classes + found[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def measures_of(
    matrices: Sequence[np.ndarray] | np.ndarray, classes: Sequence[str], *, prefix: str = "", seed: int = 0
) -> list[Measure]:
    """Return the measures of the confusion matrices of n pictures; see `run`."""
    both = np.array([np.diagonal(one) for one in matrices], np.float64)  # (n, K): pixels that are right
    union = np.array([one.sum(0) + one.sum(1) for one in matrices], np.float64) - both
    total = np.array([one.sum() for one in matrices], np.float64)

    def share_of(number: int, drawn: np.ndarray) -> float:
        return float(_iou(both[drawn, number].sum(), union[drawn, number].sum()))

    def mean_iou(drawn: np.ndarray) -> float:
        return float(np.nanmean(_iou(both[drawn].sum(0), union[drawn].sum(0))))

    def accuracy(drawn: np.ndarray) -> float:
        return float(100 * both[drawn].sum() / max(total[drawn].sum(), 1))

    count = len(matrices)
    found = [
        measured(f"{prefix}mIoU", mean_iou, count, unit="%", seed=seed),
        measured(f"{prefix}pixel accuracy", accuracy, count, unit="%", seed=seed),
    ]
    for number, name in enumerate(classes):
        if union[:, number].sum():
            one = partial(share_of, number)
            found.append(measured(f"{prefix}IoU {name}", one, count, unit="%", seed=seed))
    return found


def _iou(both: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Return intersection over union in percent; NaN for classes that are nowhere, which no mean counts."""
    return np.where(union > 0, 100 * both / np.maximum(union, 1), np.nan)
