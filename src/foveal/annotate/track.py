"""Objects followed through the frames of a video from one mask, and again from every frame that a person corrects.

Shapes: C masks (the background first), H W pixels of a frame; grid_h x grid_w patches; h w cells.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foveal.annotate.cells import Cells, Sharpness
from foveal.annotate.patch_head import coverage
from foveal.errors import FovealError
from foveal.evaluate.video import Tracking
from foveal.features.propagation import propagate
from foveal.features.seen import SeenImage

Frames = Callable[[int], SeenImage]


@dataclass(frozen=True)
class Following:
    """How objects are followed.

    Attributes:
        tracking: how labels are carried; its `short_side` is not used, since the frames come as they were seen.
        sharpness: how masks follow the edges of a frame; None leaves them as smooth as patches are, which had the
            better J&F on DAVIS by 4 points, with features and with raw colour: see benchmarks/RESULTS.md.
    """

    tracking: Tracking = field(default_factory=Tracking)
    sharpness: Sharpness | None = None


def follow(
    frame: Frames,
    num_frames: int,
    given: Mapping[int, np.ndarray],
    *,
    start: int | None = None,
    following: Following = Following(),
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each frame after the start and the objects in it, (H, W) uint8, frame by frame.

    Labels come from the frames whose masks are given, from the start on, and from the few frames before the one at
    hand. A frame whose mask is given keeps it. After a correction of frame n, add its mask to `given` and follow again
    with start=n: the frames before n are left as they are.

    Args:
        frame: returns a frame by its number; see `foveal.features.seen.see`. Each is asked for once.
        num_frames: of the video.
        given: (H, W) whole numbers by frame: 0 is the background, others name objects.
        start: a frame whose mask is given; None is the first of them.
        following: the settings.

    Raises:
        FovealError: no mask, none at the start, a frame that there is not, or a mask of another size than its frame.

    Example:
        >>> frame = lambda index: see(model, f"video/{index:05d}.jpg", size=480)  # doctest: +SKIP
        >>> masks = dict(follow(frame, 80, {0: first}))  # doctest: +SKIP
        >>> masks |= dict(follow(frame, 80, {0: first, 40: corrected}, start=40))  # doctest: +SKIP
    """
    start = _checked(num_frames, given, start)
    objects = np.unique(np.concatenate([[0], *(np.unique(mask) for mask in given.values())]))
    fixed: list[tuple[Tensor, Tensor]] = []
    for index in sorted(number for number in given if number < start):
        seen = frame(index)
        fixed.append((seen.patches, _shares(given[index], objects, seen)))
    previous: deque[tuple[Tensor, Tensor]] = deque(maxlen=following.tracking.num_previous)
    for index in range(start, num_frames):
        seen = frame(index)
        if index in given:
            fixed.append((seen.patches, _shares(given[index], objects, seen)))
            if index > start:
                yield index, given[index].astype(np.uint8)
            continue
        carried = _carried(seen, [*fixed, *previous], following.tracking)
        previous.append((seen.patches, carried))
        yield index, objects[largest(carried, seen, following.sharpness)].astype(np.uint8)


def largest(masks: Tensor, seen: SeenImage, sharpness: Sharpness | None) -> np.ndarray:
    """Return which mask is the largest at each pixel of the original, (H, W) int64.

    Each mask is first stretched over 0..1, so that small objects, which are weak everywhere, stand beside the
    background; equal ones go to the first. With one cell a patch and no bonds this is the DAVIS protocol's choice.

    Args:
        masks: (C, grid_h, grid_w) float, at least 0.
        seen: the frame.
        sharpness: how masks follow its edges; None enlarges them bilinearly.
    """
    lowest, highest = (getattr(masks, name)(dim=(1, 2), keepdim=True) for name in ("amin", "amax"))
    stretched = ((masks - lowest) / (highest - lowest).clamp(min=1e-30)).numpy()
    cells = Cells(seen, sharpness or Sharpness())
    enlarged = [cells.of_patches(mask) for mask in stretched]
    if sharpness is None:
        return np.argmax([cells.to_original(mask, guided=False) for mask in enlarged], axis=0)
    return np.argmax([cells.to_original(cells.settled(mask)) for mask in enlarged], axis=0)


def _carried(seen: SeenImage, contexts: list[tuple[Tensor, Tensor]], tracking: Tracking) -> Tensor:
    patches, masks = zip(*contexts, strict=True)
    return propagate(
        seen.patches,
        patches,
        masks,
        radius=tracking.radius,
        top_k=tracking.top_k,
        temperature=tracking.temperature,
    )


def _shares(mask: np.ndarray, objects: np.ndarray, seen: SeenImage) -> Tensor:
    """Return the share of each patch that each object covers, (C, grid_h, grid_w) float32."""
    return torch.from_numpy(np.stack([coverage(mask == number, seen.geometry) for number in objects]))


def _checked(num_frames: int, given: Mapping[int, np.ndarray], start: int | None) -> int:
    """Return the first frame to follow from."""
    if not given:
        raise FovealError("no mask to follow; give the mask of at least one frame")
    if outside := [index for index in given if not 0 <= index < num_frames]:
        raise FovealError(f"a mask is given for frame {outside[0]}; the video has frames 0 to {num_frames - 1}")
    if wrong := [index for index, mask in given.items() if mask.ndim != 2 or mask.dtype.kind not in "biu"]:
        mask = given[wrong[0]]
        raise FovealError(
            f"the mask of frame {wrong[0]} has shape {mask.shape} and type {mask.dtype}; give (H, W) whole numbers"
        )
    if not any(mask.any() for mask in given.values()):
        raise FovealError("the masks show no object; give one that covers a part of its frame")
    start = min(given) if start is None else start
    if start not in given:
        raise FovealError(f"start={start} has no mask; start from {', '.join(map(str, sorted(given)))}")
    return start
