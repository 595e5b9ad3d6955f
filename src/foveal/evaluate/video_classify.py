"""Classification of video clips by the features of a few of their frames."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.knn import KS, score
from foveal.evaluate.labelled import Labelled
from foveal.evaluate.layouts.clips import Clips
from foveal.evaluate.results import Measure
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.labels import check_apart, number_labels

Join = Literal["mean", "concatenate"]


def run(
    model: Model,
    train: Clips,
    test: Clips,
    *,
    join: Join = "mean",
    ks: Sequence[int] = KS,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measure]:
    """Evaluate a model on clips by kNN over the joined class tokens of their frames.

    The published protocol trains a linear layer on these features; kNN trains nothing, so its numbers never stand
    beside the published ones.

    Args:
        model: a loaded model.
        train: clips that vote.
        test: clips that are classified, with as many frames.
        join: "mean" of the frames, as for UCF101 and Kinetics-400, or "concatenate", which keeps their order, as for
            Something-Something v2.
        ks: see `foveal.evaluate.knn.run`.
        batch_size: frames at a time.
        seed: of the intervals, which draw clips.
        progress: called with (frames done, frames in all), first of train, then of test.

    Raises:
        FovealError: a join that is not known, or clips of other numbers of frames.
        ImageSetError: labels that do not match, clips in both sets, or frames that cannot be read.

    Source: arXiv 2304.07193, section 7.2.
    """
    if join not in get_args(Join):
        raise FovealError(f"join '{join}' is not known; choose {' or '.join(get_args(Join))}")
    if train.num_frames != test.num_frames:
        raise FovealError(
            f"{train.num_frames} frames of a train clip, {test.num_frames} of a test clip; use one number"
        )
    check_apart(train.frames, test.frames)
    train_labels, test_labels, _ = number_labels(train.frames, test.frames)

    def extract(clips: Clips, labels: Tensor) -> Labelled:
        found = model.extract_set(clips.frames, batch_size=batch_size, progress=progress)
        if found.bad:
            missing = sorted(set(range(len(clips.frames))) - set(found.indices.tolist()))
            raise ImageSetError(f"the frame {clips.frames.uri(missing[0])} cannot be read; repair or remove it")
        features = join_frames(found.arrays["cls"], num_frames=clips.num_frames, join=join)
        return Labelled(features, labels[:: clips.num_frames])

    return score(extract(train, train_labels), extract(test, test_labels), ks=ks, seed=seed)


def join_frames(features: Tensor, *, num_frames: int, join: Join) -> Tensor:
    """Return one vector a clip, (clips, D) or (clips, num_frames D), of frames (clips num_frames, D).

    Frames are first scaled to length 1, so that none outweighs another.
    """
    frames = torch.nn.functional.normalize(features, dim=1).unflatten(0, (-1, num_frames))
    return frames.mean(dim=1) if join == "mean" else frames.flatten(1)
