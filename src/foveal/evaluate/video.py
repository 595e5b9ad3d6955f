"""Objects followed through videos by frozen patch features: the DAVIS protocol.

Shapes: C masks (the background first), H W pixels of a frame; grid_h x grid_w patches.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError
from foveal.evaluate.layouts.davis import Video
from foveal.evaluate.results import Measure, measured
from foveal.evaluate.video_metrics import Course, contour_accuracy, course, region_similarity
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.propagation import propagate
from foveal.features.store import ENGINE
from foveal.files import write_atomically
from foveal.images.masks import encode_ids

_PUBLISHED_MULTIPLE = 64  # of the long side


class Tracking(NamedTuple):
    """How labels are carried.

    Attributes:
        short_side: of the frames that the model sees, pixels.
        num_previous: frames that labels come from, besides the first.
        radius: see `foveal.features.propagation.propagate`, as are top_k and temperature.
    """

    short_side: int = 480
    num_previous: int = 7
    radius: int = 12
    top_k: int = 5
    temperature: float = 0.1


class Scores(NamedTuple):
    """What became of each object of a sequence, in J and in F."""

    regions: list[Course]
    contours: list[Course]


def run(
    model: Model,
    videos: Sequence[Video],
    *,
    tracking: Tracking = Tracking(),  # noqa: B008 - immutable
    masks_out: Path | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """Evaluate a model by following the objects of each first mask, semi-supervised: no training, no fine-tuning.

    Args:
        model: a loaded model.
        videos: see `foveal.evaluate.layouts.davis.open_davis`.
        tracking: the settings of the propagation.
        masks_out: a folder for the predicted masks, NAME/NNNNN.png as of DAVIS; None keeps none.
        seed: of the intervals.
        folder: where the scores of each sequence are kept, and from where an interrupted evaluation of the same model,
            sequences and settings goes on.
        progress: called with (frames done, frames in all).

    Returns:
        In percent: J&F, and of J and F the mean, the recall (share of frames above 0.5) and the decay (first quarter
        less last), each the mean over all objects; the first and the last frame do not count. Intervals draw whole
        sequences.

    Raises:
        FovealError: settings out of range, or frames too large or too small for the model; said before a frame is seen.
        BadImageError: a frame or a mask that cannot be read.
        FovealError: scores kept in the folder that are damaged, or a folder that cannot be written.

    Source: arXiv 1704.00675 (metrics) and arXiv 2104.14294, section 4.2.2. Differences: frames are resized by
    antialiased bicubic, as everything else that the model sees.
    """
    _check(model, videos, tracking)
    total = sum(video.num_frames for video in videos)
    model = _settled(model, videos[0], tracking, folder)
    done, scores = 0, []
    for video in videos:
        before = done

        def count(index: int, before: int = before) -> None:
            if progress:
                progress(before + index + 1, total)

        kept = None if folder is None else folder / f"{video.name}.json"
        if kept is not None and kept.is_file():
            found = _read_scores(kept)
        else:
            found = _score(video, _written(track(model, video, tracking), video, masks_out), count)
            if kept is not None:
                _keep_scores(kept, found)
        scores.append(found)
        done += video.num_frames
    return summarise(scores, seed=seed)


def track(model: Model, video: Video, tracking: Tracking = Tracking()) -> Iterator[np.ndarray]:  # noqa: B008
    """Yield the objects of each frame from the second on, (H, W) uint8, as the first mask and the features say.

    Only the first frame, `num_previous` others and the one at hand are in memory.

    Args:
        model: a loaded model.
        video: a sequence.
        tracking: the settings.
    """
    truth = video.mask(0)[0]
    height, width = truth.shape
    patch_size = model.card.backbone.patch_size
    seen = _seen(model, video, tracking)

    def features(index: int) -> Tensor:
        return model.extract(video.frame(index), size=seen, fit="resize").patches[0]

    objects = np.unique(np.append(truth, 0))
    small = _nearest(truth, seen[0] // patch_size, seen[1] // patch_size)
    first = features(0), torch.from_numpy(small == objects[:, None, None]).float()
    previous: deque[tuple[Tensor, Tensor]] = deque(maxlen=tracking.num_previous)
    for index in range(1, video.num_frames):
        target = features(index)
        contexts, masks = zip(first, *previous, strict=True)
        carried = propagate(
            target,
            contexts,
            masks,
            radius=tracking.radius,
            top_k=tracking.top_k,
            temperature=tracking.temperature,
        )
        previous.append((target, carried))
        yield _nearest(objects[largest_mask(carried, patch_size=patch_size)], height, width)


def frame_shape(height: int, width: int, *, short_side: int, patch_size: int) -> tuple[int, int]:
    """Return the (height, width) in which the model sees a frame.

    The short side is cut down to a multiple of the patch size, the long side, in proportion, to one of 64 where that is
    whole patches (as published), else of the patch size.

    Example:
        >>> frame_shape(480, 854, short_side=480, patch_size=16), frame_shape(480, 854, short_side=480, patch_size=14)
        ((480, 832), (476, 840))
    """
    multiple = patch_size if _PUBLISHED_MULTIPLE % patch_size else _PUBLISHED_MULTIPLE
    short = short_side // patch_size * patch_size
    long = int(short * max(height, width) / min(height, width))
    long = max(short, long // multiple * multiple)
    return (short, long) if height <= width else (long, short)


def largest_mask(masks: Tensor, *, patch_size: int) -> np.ndarray:
    """Return which mask is the largest at each pixel, (H, W) int64.

    The masks are upsampled by the patch size, bilinearly, and each is stretched over 0..1, so that small objects, which
    are weak everywhere, stand beside the background. Equal ones go to the first.

    Args:
        masks: (C, grid_h, grid_w) float, at least 0.
        patch_size: pixels.
    """
    upsampled = F.interpolate(masks[None], scale_factor=patch_size, mode="bilinear", align_corners=False)[0]
    lowest = upsampled.amin(dim=(1, 2), keepdim=True)
    span = upsampled.amax(dim=(1, 2), keepdim=True) - lowest
    stretched = torch.where(span > 0, (upsampled - lowest) / span.clamp(min=1e-30), upsampled - lowest)
    return stretched.argmax(dim=0).numpy()


def summarise(scores: Sequence[Scores], *, seed: int = 0) -> list[Measure]:
    """Return the means over all objects of all sequences, with intervals over sequences; see `run`."""
    measures = []
    for letter, name in (("J", "regions"), ("F", "contours")):
        for part in Course._fields:
            values = [np.array([getattr(one, part) for one in getattr(score, name)]) for score in scores]
            unit = "points" if part == "decay" else "%"
            measures.append(_mean_over_objects(f"{letter} {part}", values, unit, seed))
    both = [(np.array([j.mean for j in s.regions]) + np.array([f.mean for f in s.contours])) / 2 for s in scores]
    return [_mean_over_objects("J&F", both, "%", seed), *measures]


def _mean_over_objects(metric: str, values: Sequence[np.ndarray], unit: str, seed: int) -> Measure:
    """Return the mean of the values of all objects; whole sequences are drawn."""

    def mean(drawn: np.ndarray) -> float:
        return 100 * float(np.concatenate([values[number] for number in drawn]).mean())

    return measured(metric, mean, len(values), unit=unit, seed=seed)


def _score(video: Video, predictions: Iterator[np.ndarray], count: Callable[[int], None]) -> Scores:
    """Compare predictions with the masks of a sequence; objects are those of any of its masks that count."""
    frames: list[dict[int, tuple[float, float]]] = []
    objects = set(np.unique(video.mask(0)[0]).tolist())
    for index, prediction in enumerate(predictions, start=1):
        count(index)
        if index == video.num_frames - 1:
            continue
        truth, void = video.mask(index)
        frames.append({})
        objects |= set(np.unique(truth).tolist())
        for number in sorted(objects - {0}):
            pair = prediction == number, truth == number
            frames[-1][number] = region_similarity(*pair, void=void), contour_accuracy(*pair, void=void)
    # An object that had not been seen yet is neither in the mask nor in the prediction there.
    values = {n: np.array([frame.get(n, (1.0, 1.0)) for frame in frames]) for n in sorted(objects - {0})}
    return Scores([course(v[:, 0]) for v in values.values()], [course(v[:, 1]) for v in values.values()])


def _written(predictions: Iterator[np.ndarray], video: Video, folder: Path | None) -> Iterator[np.ndarray]:
    """Pass predictions on, and write each as a palette PNG where a folder is given; the first is the mask given."""
    if folder is None:
        yield from predictions
        return
    target = folder / video.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / f"{video.stem(0)}.png", encode_ids(video.mask(0)[0]))
        for index, prediction in enumerate(predictions, start=1):
            write_atomically(target / f"{video.stem(index)}.png", encode_ids(prediction))
            yield prediction
    except OSError as error:
        raise FovealError(f"masks cannot be written to {target} ({error.strerror}); choose another folder") from error


def _nearest(ids: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(ids.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(picture)


def _check(model: Model, videos: Sequence[Video], tracking: Tracking) -> None:
    patch_size = model.card.backbone.patch_size
    if not videos:
        raise FovealError("no sequence to measure; give at least one")
    if tracking.short_side < patch_size or tracking.num_previous < 0:
        raise FovealError(
            f"short_side={tracking.short_side}, num_previous={tracking.num_previous}; "
            f"the first must be at least the patch size {patch_size}, the second at least 0"
        )
    for video in videos:
        model.preprocessing(size=_seen(model, video, tracking), fit="resize")  # refuses what is too large


def _seen(model: Model, video: Video, tracking: Tracking) -> tuple[int, int]:
    """Return the (height, width) in which a model sees the frames of a sequence."""
    patch_size = model.card.backbone.patch_size
    return frame_shape(*video.mask(0)[0].shape, short_side=tracking.short_side, patch_size=patch_size)


def _settled(model: Model, video: Video, tracking: Tracking, folder: Path | None) -> Model:
    """Return the model with the engine that is chosen on the first frame of all, now or before an interruption."""
    if folder is None:
        return model
    preprocess = model.preprocessing(size=_seen(model, video, tracking), fit="resize")
    first = (torch.from_numpy(preprocess(video.frame(index)))[None] for index in range(1))
    return Model(model.engine.settle(first, folder=folder / ENGINE), model.card)


def _keep_scores(path: Path, scores: Scores) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(scores._asdict()))
    except OSError as error:
        raise FovealError(f"{path} cannot be written ({error.strerror}); free space or choose another --out") from error


def _read_scores(path: Path) -> Scores:
    try:
        kept = json.loads(path.read_bytes())
        return Scores(*([Course(*map(float, one)) for one in kept[name]] for name in Scores._fields))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FovealError(f"{path} is damaged; remove it, and that sequence is followed again") from error
