"""Pictures with an answer for every pixel: what dense heads are fitted on and measured with.

Shapes: H W pixels.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.images.decode import decode, decode_ids
from foveal.images.preprocess import to_array
from foveal.tasks.segment import IGNORED

# What is used of a picture: all; of KITTI the 352 x 1216 pixels at the bottom in the middle, which lasers reach; of NYU
# what the white frame around its 480 x 640 pixels leaves.
Part = Literal["whole", "bottom", "framed"]
_BOTTOM = (352, 1216)


class Pair(NamedTuple):
    """The files of a picture and of its mask or depth."""

    image: Path
    target: Path


@dataclass(frozen=True)
class Masks:
    """How masks are read.

    Attributes:
        classes: names by number.
        ignored: values in the files of pixels that do not count.
        offset: value in the files of class 0.
    """

    classes: Sequence[str]
    ignored: frozenset[int] = frozenset({255})
    offset: int = 0

    def read(self, path: Path) -> np.ndarray:
        """Return a mask as (H, W) int64: class numbers, `IGNORED` where a pixel does not count.

        Raises:
            BadImageError: it cannot be read, or holds a value that is neither a class nor ignored; it is named.
        """
        values = read_ids(path)
        known = np.isin(values, list(self.ignored))
        ids = values - self.offset
        outside = ~known & ((ids < 0) | (ids >= len(self.classes)))
        if outside.any():
            worst = int(values[outside].max())
            raise BadImageError(
                "wrong_id",
                f"{path} holds the value {worst}; allowed are {self.offset} to "
                f"{self.offset + len(self.classes) - 1} for {len(self.classes)} classes, and of pixels that do not "
                f"count {', '.join(map(str, sorted(self.ignored))) or 'none'}; correct the mask, name all classes, or "
                f"add the value to the ignored ones",
            )
        return np.where(known, IGNORED, ids)


@dataclass(frozen=True)
class Depths:
    """How depth is read.

    Attributes:
        unit: metres of the value 1: 0.001 for millimetres, 1/256 for KITTI.
    """

    unit: float = 0.001

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def read(self, path: Path) -> np.ndarray:
        """Return depth as (H, W) float32, metres; 0 is not known.

        Raises:
            BadImageError: it cannot be read, or is no 16-bit grey picture; it is named.
        """
        values = decode(_bytes_of(path), channels=1)[:, :, 0]
        if values.dtype != np.uint16:
            raise BadImageError("wrong_depth", f"{path} is of {values.dtype}; depth is a 16-bit grey PNG or TIFF")
        return values.astype(np.float32) * np.float32(self.unit)


@dataclass(frozen=True)
class DenseSet:
    """Pictures with their masks or depth, read when they are asked for.

    Attributes:
        pairs: the files.
        reader: of the targets.
        part: of the pictures that is used.
    """

    pairs: Sequence[Pair]
    reader: Masks | Depths = field(repr=False)
    part: Part = "whole"

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int, *, channels: int = 3) -> np.ndarray:
        """Return a picture (H, W, channels); BadImageError names the file."""
        path = self.pairs[index].image
        try:
            return to_array(path, channels=channels)
        except BadImageError as error:
            raise BadImageError(error.reason, f"{path}: {error}") from error

    def target(self, index: int) -> np.ndarray:
        """Return the answer of a picture (H, W); see `Masks.read` and `Depths.read`."""
        return self.reader.read(self.pairs[index].target)

    def load(self, index: int, *, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture and its answer; BadImageError where their sizes differ."""
        pixels, target = self.image(index, channels=channels), self.target(index)
        if pixels.shape[:2] != target.shape:
            image, answer = self.pairs[index]
            raise BadImageError(
                "wrong_size",
                f"{image} has {pixels.shape[1]} x {pixels.shape[0]} pixels, {answer} {target.shape[1]} x "
                f"{target.shape[0]}; both must be of one size",
            )
        window = window_of(target.shape, self.part)
        return pixels[window], target[window]

    @cached_property
    def hash(self) -> str:
        """The sha256 over names and sizes of all files, in their order, and over how the targets are read."""
        how = repr(self.reader) if self.part == "whole" else f"{self.reader!r} {self.part}"
        found = hashlib.sha256(how.encode())
        for pair in self.pairs:
            for path in pair:
                found.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
        return found.hexdigest()


def window_of(shape: tuple[int, ...], part: Part) -> tuple[slice, slice]:
    """Return the rows and columns of a part of pictures (H, W)."""
    height, width = shape
    if part == "bottom" and height >= _BOTTOM[0] and width >= _BOTTOM[1]:
        left = (width - _BOTTOM[1]) // 2
        return slice(height - _BOTTOM[0], height), slice(left, left + _BOTTOM[1])
    if part == "framed" and shape == (480, 640):
        return slice(45, 472), slice(43, 608)
    return slice(0, height), slice(0, width)


def check_unit(unit: float) -> None:
    """Refuse a unit of depth, metres of the value 1, that is none."""
    if not 0 < unit < math.inf:
        raise FovealError(f"unit={unit:g}; give the metres of the value 1 in the files of depth, such as 0.001")


def check_files(pairs: Sequence[Pair]) -> None:
    """Refuse pictures or targets that are not there, naming the first; and a set of none."""
    if not pairs:
        raise ImageSetError("no picture with a mask or depth; check the folder")
    missing = [path for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise ImageSetError(f"{len(missing)} of {2 * len(pairs)} files are missing, first {missing[0]}; copy them too")


def read_ids(path: Path) -> np.ndarray:
    """Return the numbers in a mask file, (H, W) int64; BadImageError names the file."""
    try:
        return decode_ids(_bytes_of(path))[0].astype(np.int64)
    except BadImageError as error:
        raise error if str(path) in str(error) else BadImageError(error.reason, f"{path}: {error}") from error


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadImageError("unreadable", f"{path} cannot be read ({error.strerror}); check the path") from error
