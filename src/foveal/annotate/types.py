"""Labels, masks and boxes of images, as every part of annotation hands them on.

Shapes: H W pixels of the original picture; x to the right, y down, from its upper left corner.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from foveal.errors import FovealError

State = Literal["proposed", "unsure", "accepted", "rejected"]
Source = Literal["user", "propagated", "imported"]


@dataclass(frozen=True)
class Mask:
    """A binary mask as run-length encoding.

    Attributes:
        height: pixels.
        width: pixels.
        counts: the runs as COCO compresses them, column by column.
    """

    height: int
    width: int
    counts: bytes

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Mask":
        """Encode (H, W) bool."""
        if pixels.ndim != 2 or pixels.dtype != bool:
            raise FovealError(f"a mask of shape {pixels.shape} and type {pixels.dtype}; give (H, W) bool")
        found = _coding().encode(np.asfortranarray(pixels, dtype=np.uint8))
        height, width = pixels.shape
        return cls(height, width, found["counts"])

    def pixels(self) -> np.ndarray:
        """Return (H, W) bool."""
        decoded: np.ndarray = _coding().decode({"size": [self.height, self.width], "counts": self.counts})
        return decoded.astype(bool)

    def box(self) -> "Box | None":
        """Return the smallest box around it, None where it is empty."""
        x, y, width, height = _coding().toBbox({"size": [self.height, self.width], "counts": self.counts}).tolist()
        return Box(x, y, width, height) if width > 0 else None


class Box(NamedTuple):
    """A rectangle in pixels of the original picture; x, y is its upper left corner."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Annotation:
    """What is said of an image: with neither mask nor box, a label of the whole.

    Attributes:
        image: uri in its image set.
        class_name: one of the set's classes.
        mask: of the size of the picture.
        box: of the same thing.
        state: "proposed" and "unsure" are a computer's, until a person accepts or rejects them.
        source: who said it first.
        score: 0 to 1; None where a person said it.
        id: in its project.
        track: what names the same object in the frames of a video.
    """

    image: str
    class_name: str
    mask: Mask | None = None
    box: Box | None = None
    state: State = "accepted"
    source: Source = "user"
    score: float | None = None
    id: int | None = None
    track: str | None = None


@dataclass(frozen=True)
class Prompt:
    """What a person did on a picture.

    Attributes:
        kind: one point, a stroke through points, or a box between two opposite corners.
        points: x, y in pixels of the original picture; whole numbers are centres of pixels.
        positive: it shows what is meant; else what is not.
        radius: of a stroke, pixels.
    """

    kind: Literal["point", "stroke", "box"]
    points: tuple[tuple[float, float], ...]
    positive: bool = True
    radius: float = 0.0


class AnnotatedImage(NamedTuple):
    """A picture that annotations name: its uri, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class AnnotatedSet:
    """Pictures with what is said of them, as files of other tools hold it."""

    classes: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    annotations: tuple[Annotation, ...]


def _coding():  # type: ignore[no-untyped-def]
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise FovealError("masks need pycocotools: pip install 'foveal[annotate]'") from error
    return mask
