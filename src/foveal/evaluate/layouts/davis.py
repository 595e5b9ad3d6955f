"""DAVIS as distributed: JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png and lists in ImageSets/."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.images.decode import decode_ids, read_size
from foveal.images.imageset import ImageSet

_VOID = 255
_LISTS = ("2017", "2016", "480p")


class Video:
    """A sequence: frames, and a mask for each, read when asked for.

    The numbers of a mask are objects, 0 the background. Where they are those of a palette, as in DAVIS 2017, 255 are
    pixels that do not count. In grey masks, as in DAVIS 2016, every number above 0 is the one object.
    """

    def __init__(self, name: str, frames: ImageSet, masks: ImageSet) -> None:
        """Take frames and their masks, one each, in the same order."""
        self.name = name
        self.num_frames = len(frames)
        self._frames = frames
        self._masks = masks

    @property
    def hash(self) -> str:
        """The sha256 over the names and sizes of its files."""
        return hashlib.sha256(f"{self._frames.hash} {self._masks.hash}".encode()).hexdigest()

    def stem(self, index: int) -> str:
        """Return the name of a frame without its ending."""
        return Path(self._frames.uri(index)).stem

    def frame(self, index: int) -> np.ndarray:
        """Return a frame, (H, W, 3) uint8."""
        try:
            return self._frames.decode(index)
        except BadImageError as error:
            raise BadImageError(error.reason, f"{self._frames.uri(index)}: {error}") from error

    def mask(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the objects of a frame, (H, W) uint8, and where nothing counts, (H, W) bool."""
        ids, has_palette = self._ids(index)
        if not has_palette:
            return (ids > 0).astype(np.uint8), np.zeros(ids.shape, bool)
        void = ids == _VOID
        return np.where(void, 0, ids).astype(np.uint8), void

    def check(self) -> None:
        """Raise FovealError unless there are 3 frames or more, the first mask has an object, and sizes fit."""
        if self.num_frames < 3:
            raise ImageSetError(
                f"the sequence {self.name} has {self.num_frames} frames; the first and the last do not count, "
                "give at least 3"
            )
        if not self.mask(0)[0].any():
            raise ImageSetError(f"{self._masks.uri(0)} shows no object; the first mask says what is to be followed")
        size = self.mask(0)[0].shape
        for images in (self._frames, self._masks):
            for index in range(self.num_frames):
                width, height = read_size(images.read(index))
                if (height, width) != size:
                    raise ImageSetError(
                        f"{images.uri(index)} has {width} x {height} pixels, the first mask of {self.name} "
                        f"{size[1]} x {size[0]}; frames and masks of a sequence must have one size"
                    )

    def _ids(self, index: int) -> tuple[np.ndarray, bool]:
        try:
            return decode_ids(self._masks.read(index))
        except BadImageError as error:
            raise BadImageError(error.reason, f"{self._masks.uri(index)}: {error}") from error


def open_davis(
    folder: str | Path, *, split: str | None = None, sequences: Sequence[str] | None = None, resolution: str = "480p"
) -> list[Video]:
    """Open the sequences of a DAVIS folder and check them: a mask for every frame, of its size.

    Args:
        folder: holds JPEGImages/RESOLUTION/NAME/ and Annotations/RESOLUTION/NAME/.
        split: "val" or the like, a list in ImageSets/2017/, 2016/ or 480p/, the first that is there. None takes every
            sequence that has a folder.
        sequences: only these.
        resolution: name of the folders.

    Raises:
        ImageSetError: a folder, a list, a sequence, a frame or a mask is missing, named; or their sizes differ.
    """
    folder = Path(folder)
    frames, masks = folder / "JPEGImages" / resolution, folder / "Annotations" / resolution
    for needed in (frames, masks):
        if not needed.is_dir():
            raise ImageSetError(f"{needed} does not exist; DAVIS has JPEGImages/{resolution} beside Annotations")
    every = sorted(path.name for path in frames.iterdir() if path.is_dir())
    names = every if split is None else _listed(folder, split)
    if sequences is not None:
        if unknown := sorted(set(sequences) - set(names)):
            raise ImageSetError(f"{folder} has no sequence {', '.join(unknown)}; it has {', '.join(names[:8])}")
        names = [name for name in names if name in sequences]
    if not names:
        raise ImageSetError(f"{frames} holds no sequence; each is a folder of frames")
    videos = [_video(folder, frames / name, masks / name) for name in names]
    for video in videos:
        video.check()
    return videos


def _listed(folder: Path, split: str) -> list[str]:
    """Return the sequences of a list: a name a line, or, in the form of 2016, a frame and its mask a line."""
    places = [folder / "ImageSets" / year / f"{split}.txt" for year in _LISTS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ImageSetError(f"none of {', '.join(map(str, places))} exists; choose another split, or none for all")
    lines = path.read_text(encoding="utf-8").split("\n")
    firsts = [line.split()[0] for line in lines if line.strip()]
    return list(dict.fromkeys(Path(first).parent.name if "/" in first else first for first in firsts))


def _video(folder: Path, frames: Path, masks: Path) -> Video:
    """Pair the frames of a sequence with their masks by name."""
    found = sorted(path for path in frames.glob("*.jpg")) if frames.is_dir() else []
    if not found:
        raise ImageSetError(f"{frames} holds no frame NNNNN.jpg; copy the sequence again")
    beyond = {path.stem for path in masks.glob("*.png")} - {path.stem for path in found}
    if beyond:
        raise ImageSetError(f"{frames} lacks {len(beyond)} frames that have a mask, first {min(beyond)}.jpg")
    numbers = [int(path.stem) for path in found if path.stem.isdecimal()]
    if gaps := sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if numbers else []:
        raise ImageSetError(f"{frames} lacks {len(gaps)} frames between its first and last, first number {gaps[0]}")
    return Video(
        frames.name,
        ImageSet.of_files(folder, [path.relative_to(folder).as_posix() for path in found]),
        ImageSet.of_files(folder, [(masks / f"{path.stem}.png").relative_to(folder).as_posix() for path in found]),
    )


def hash_of(videos: Sequence[Video]) -> str:
    """Return the sha256 over the sequences in their order."""
    if not videos:
        raise FovealError("no sequence")
    return hashlib.sha256(" ".join(f"{video.name} {video.hash}" for video in videos).encode()).hexdigest()
