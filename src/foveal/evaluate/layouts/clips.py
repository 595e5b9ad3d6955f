"""Video clips as folders of frames: CLASS/CLIP/frames."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveal.errors import ImageSetError
from foveal.images.imageset import ImageSet
from foveal.images.sources import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Clips:
    """Labelled clips.

    Attributes:
        frames: the frames that are looked at, `num_frames` of each clip, clip after clip; their label is its class.
        num_frames: of a clip.
    """

    frames: ImageSet
    num_frames: int

    def __len__(self) -> int:
        return len(self.frames) // self.num_frames

    @property
    def labels(self) -> list[str]:
        """The class of each clip."""
        labels = self.frames.labels
        assert labels is not None  # given by `open_clips`
        return labels[:: self.num_frames]


def open_clips(folder: str | Path, *, num_frames: int = 8) -> Clips:
    """Open the clips of a folder, CLASS/CLIP/ with the frames of a clip in the order of their names.

    Args:
        folder: see above.
        num_frames: looked at in each clip: the middle ones of so many equal parts. A shorter clip repeats frames.

    Raises:
        ImageSetError: no clip, a clip without frames, or num_frames below 1.
    """
    if num_frames < 1:
        raise ImageSetError(f"num_frames={num_frames}; look at one frame of a clip or more (8 as published)")
    folder = Path(folder)
    clips = sorted(path for path in folder.glob("*/*") if path.is_dir())
    if not clips:
        raise ImageSetError(f"{folder} holds no clip; each is a folder of frames, CLASS/CLIP/00001.jpg")
    uris, labels = [], []
    for clip in clips:
        frames = sorted(entry.name for entry in os.scandir(clip) if entry.name.lower().endswith(IMAGE_SUFFIXES))
        if not frames:
            raise ImageSetError(f"{clip} holds no frame; a clip is a folder of pictures, first unpack videos into such")
        chosen = evenly_spaced(len(frames), num_frames)
        uris += [(clip / frames[place]).relative_to(folder).as_posix() for place in chosen]
        labels += [clip.parent.name] * num_frames
    return Clips(ImageSet.of_files(folder, uris, labels=labels), num_frames)


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return the middle of each of `count` equal parts of a clip of `length` frames.

    Example:
        >>> evenly_spaced(16, 4), evenly_spaced(2, 4)
        ([2, 6, 10, 14], [0, 0, 1, 1])
    """
    places: list[int] = ((np.arange(count) + 0.5) * length / count).astype(int).tolist()
    return places
