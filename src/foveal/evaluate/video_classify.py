"""Classification of video clips by the features of a few of their frames.

Shapes: F frames of a clip, D width of a feature.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate import knn, linear_cached
from foveal.evaluate.labelled import Labelled, LabelledArrays, extract_labelled
from foveal.evaluate.layouts.clips import Clips
from foveal.evaluate.linear_grid import inputs_of, layers_of
from foveal.evaluate.results import Measure
from foveal.features.batches import Progress
from foveal.features.extract import Model

Join = Literal["mean", "concatenate"]
Classifier = Literal["knn", "linear"]


def run(
    model: Model,
    train: Clips,
    test: Clips,
    *,
    classifier: Classifier = "knn",
    join: Join = "mean",
    ks: Sequence[int] = knn.KS,
    num_steps: int = linear_cached.NUM_STEPS,
    batch_size: int = 32,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
    trained: Progress | None = None,
) -> list[Measure]:
    """Evaluate a model on clips by the joined features of their frames.

    "linear" trains what the published protocol does, the grid of linear classifiers of image classification on joined
    frames, but on one fixed view of each frame, and a tenth of the train clips chooses one of the grid. "knn" trains
    nothing, and reads class tokens of length 1, so that no frame outweighs another. Neither stands beside published
    figures.

    Args:
        model: a loaded model.
        train: clips to learn from.
        test: clips that are classified, with as many frames.
        classifier: "knn" or "linear".
        join: "mean" of the frames, as for UCF101 and Kinetics-400, or "concatenate", which keeps their order, as for
            Something-Something v2.
        ks: of kNN; see `foveal.evaluate.knn.run`.
        num_steps: of the linear classifiers; see `foveal.evaluate.linear_cached.run`.
        batch_size: frames at a time.
        seed: of the intervals, which draw clips, and of the linear classifiers.
        folder: see `extract_labelled`.
        progress: called with (frames done, frames in all), first of train, then of test.
        trained: called with (steps done, steps in all) of the linear classifiers.

    Returns:
        See `foveal.evaluate.knn.run` and `foveal.evaluate.linear_cached.run`.

    Raises:
        FovealError: a join or classifier that is not known, clips of other numbers of frames, or too few clips.
        ImageSetError: labels that do not match, clips in both sets, or frames that cannot be read.

    Source: arXiv 2304.07193, section 7.2.
    """
    _check(train, test, classifier, join, ks)
    layers = layers_of(model.card.backbone.depth) if classifier == "linear" else None
    first, second, classes = extract_labelled(
        model,
        train.frames,
        test.frames,
        what=("cls",) if layers is None else ("cls", "mean"),
        layers=layers,
        batch_size=batch_size,
        folder=folder,
        progress=progress,
    )
    labels = [_labels(clips, found) for clips, found in ((train, first), (test, second))]
    if layers is None:
        units = [F.normalize(found.arrays["cls"], dim=1) for found in (first, second)]
        joined = [join_frames(frames, num_frames=train.num_frames, join=join) for frames in units]
        return knn.score(*map(Labelled, joined, labels), ks=ks, seed=seed)
    inputs = [
        {
            one: join_frames(frames, num_frames=train.num_frames, join=join)
            for one, frames in inputs_of(found.arrays, layers).items()
        }
        for found in (first, second)
    ]
    return linear_cached.score(
        inputs[0],
        labels[0],
        inputs[1],
        labels[1],
        num_classes=len(classes),
        num_steps=num_steps,
        seed=seed,
        trained=trained,
    )


def join_frames(features: Tensor, *, num_frames: int, join: Join) -> Tensor:
    """Return one vector a clip, (clips, D) or (clips, F D), of frames (clips F, D), clip after clip."""
    frames = features.unflatten(0, (-1, num_frames))
    return frames.mean(dim=1) if join == "mean" else frames.flatten(1)


def _check(train: Clips, test: Clips, classifier: Classifier, join: Join, ks: Sequence[int]) -> None:
    """Refuse what cannot be evaluated, before a frame is seen."""
    if classifier not in get_args(Classifier):
        raise FovealError(f"classifier '{classifier}' is not known; choose {' or '.join(get_args(Classifier))}")
    if join not in get_args(Join):
        raise FovealError(f"join '{join}' is not known; choose {' or '.join(get_args(Join))}")
    if train.num_frames != test.num_frames:
        raise FovealError(
            f"{train.num_frames} frames of a train clip, {test.num_frames} of a test clip; use one number"
        )
    if classifier == "linear" and len(train) < 10:
        raise FovealError(f"{len(train)} train clips; a tenth of them chooses the linear classifier, give at least 10")
    if classifier == "knn" and min(ks) > len(train):
        raise FovealError(f"k={', '.join(map(str, ks))} with {len(train)} train clips; choose a k up to that")


def _labels(clips: Clips, found: LabelledArrays) -> Tensor:
    """Return the class number of each clip, all of whose frames must have been read."""
    if len(found.indices) < len(clips.frames):
        missing = sorted(set(range(len(clips.frames))) - set(found.indices.tolist()))
        raise ImageSetError(f"the frame {clips.frames.uri(missing[0])} cannot be read; repair or remove it")
    return found.labels[:: clips.num_frames]
