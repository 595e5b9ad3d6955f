"""Monocular depth by a head on frozen features: RMSE, relative error and the delta shares.

Source: arXiv 2304.07193, section 7.4; metrics and crops of arXiv 1406.2283. Shapes: H W pixels.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.per_picture import measured_with, rows_of_pictures
from foveal.evaluate.results import Measure, measured_mean
from foveal.features.batches import Progress
from foveal.tasks.predict import Predictor
from foveal.tasks.samples import DenseSet

Crop = Literal["none", "nyu", "eigen", "garg"]
METRICS = {"RMSE": "m", "AbsRel": "", "delta1": "%", "delta2": "%", "delta3": "%"}  # and their units

# Shares of the height, then of the width, from where to where pixels count. NYU's are those of rows 45..471 and columns
# 41..601 of 640 x 480 pixels.
_CROPS: dict[str, tuple[float, float, float, float]] = {
    "nyu": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}

_TINY = 1e-9  # 471 / 480 * 480 is a little less than 471


def run(
    predictor: Predictor,
    test: DenseSet,
    *,
    min_depth: float = 0.001,
    max_depth: float = 10.0,
    crop: Crop = "none",
    name: str = "",
    size: int | None = None,
    flip: bool = False,
    seed: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """Measure a depth head on test pictures: each metric is the mean over pictures.

    The published figures are such means, not over all pixels: their code averages what it found for each picture.

    Args:
        predictor: the head on its backbone.
        test: pictures with depth.
        min_depth: pixels that are nearer do not count, metres; predictions are clamped to the range.
        max_depth: nor those that are farther, metres.
        crop: the part of a picture that counts: "nyu" and "eigen" (arXiv 1406.2283; indoors and KITTI), "garg"
            (arXiv 1603.04992, KITTI), or all of it.
        name: in front of the metrics, such as "lin.1".
        size: see `Predictor.predict`.
        flip: see there.
        seed: of the intervals, which draw whole pictures.
        state: file from which an interrupted measurement goes on; see `rows_of_pictures`.
        progress: called with (pictures done, pictures in all).

    Raises:
        FovealError: an unknown crop.
        ImageSetError: no picture with a known depth in the range.
        BadImageError: a picture or depth that cannot be used; the file is named.
    """
    if crop not in get_args(Crop):
        raise FovealError(f"crop='{crop}' is not known; choose {', '.join(get_args(Crop))}")

    def errors_of(index: int) -> np.ndarray:
        pixels, target = test.load(index, channels=predictor.model.card.backbone.channels)
        counted = cropped(target.shape, crop) & (target > min_depth) & (target < max_depth)
        if not counted.any():
            return np.full(len(METRICS), np.nan)
        found = predictor.predict(pixels, size=size, flip=flip)
        errors = depth_errors(np.clip(found[counted], min_depth, max_depth), target[counted])
        return np.array([errors[metric] for metric in METRICS])

    how = f"{min_depth} {max_depth} {crop} {size} {flip}"
    stamp = f"{measured_with(predictor, test)} {how}" if state else ""
    rows = rows_of_pictures(len(test), errors_of, state=state, stamp=stamp, progress=progress)
    errors = rows[~np.isnan(rows).any(axis=1)]
    if not len(errors):
        raise ImageSetError(
            f"none of the {len(test)} pictures has a depth between {min_depth:g} and {max_depth:g} m; check the unit "
            "of the files and the range"
        )
    prefix = f"{name} " if name else ""
    return [
        measured_mean(f"{prefix}{metric}", values, unit=unit, seed=seed)
        for (metric, unit), values in zip(METRICS.items(), errors.T, strict=True)
    ]


def cropped(shape: tuple[int, ...], crop: Crop) -> np.ndarray:
    """Return (H, W) bool: where a crop counts."""
    height, width = shape
    kept = np.zeros((height, width), bool)
    top, bottom, left, right = _CROPS.get(crop, (0, 1, 0, 1))
    rows, columns = (
        slice(int(first + _TINY), int(last + _TINY))
        for first, last in ((top * height, bottom * height), (left * width, right * width))
    )
    kept[rows, columns] = True
    return kept


def depth_errors(found: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return the errors over the pixels of one picture, both (n,) in metres and above 0.

    RMSE = sqrt(mean (f - t)^2); AbsRel = mean |f - t| / t; delta k is the share of max(f/t, t/f) < 1.25^k, in percent.
    """
    f, t = found.astype(np.float64), target.astype(np.float64)
    ratio = np.maximum(f / t, t / f)
    return {
        "RMSE": float(np.sqrt(((f - t) ** 2).mean())),
        "AbsRel": float((np.abs(f - t) / t).mean()),
        **{f"delta{k}": float(100 * (ratio < 1.25**k).mean()) for k in (1, 2, 3)},
    }
