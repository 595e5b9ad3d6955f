"""Where a picture's pixels went in preprocessing: from a point to its patch, and from a patch back to its point.

Coordinates are x, y in pixels, a whole number being the centre of a pixel, as in OpenCV and scikit-image: the pixel in
the top left corner is 0, 0 and the picture reaches from -0.5 to width - 0.5.
"""

import math
from dataclasses import dataclass

import numpy as np

from foveal.errors import FovealError
from foveal.images.preprocess import Preprocess, nearest_multiple, sides


@dataclass(frozen=True)
class Geometry:
    """The path of a picture through `Preprocess`: resized, then a window of it cut out or a border put around.

    Every attribute but the last is (vertical, horizontal), in pixels.

    Attributes:
        original: height and width of the picture.
        resized: height and width after resizing.
        offset: of the top left corner of what the model sees, in the resized picture; negative where it is padded.
        seen: height and width of what the model sees; multiples of `patch_size`.
        patch_size: side of a patch.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    seen: tuple[int, int]
    patch_size: int

    @classmethod
    def of(cls, preprocess: Preprocess, height: int, width: int) -> "Geometry":
        """Follow a picture of this height and width through `preprocess`.

        Example:
            >>> Geometry.of(Preprocess(), 300, 400)
            Geometry(original=(300, 400), resized=(256, 341), offset=(16, 58), seen=(224, 224), patch_size=14)
        """
        patch = preprocess.patch_size
        resized = preprocess.resized_shape(height, width)
        if preprocess.mode == "crop":
            assert preprocess.crop_size is not None  # set in Preprocess.__post_init__
            seen = sides(preprocess.crop_size)
            offset = (round((resized[0] - seen[0]) / 2), round((resized[1] - seen[1]) / 2))
        elif preprocess.mode == "resize":
            resized = seen = (nearest_multiple(resized[0], patch), nearest_multiple(resized[1], patch))
            offset = (0, 0)
        else:
            margins = (-resized[0] % patch, -resized[1] % patch)
            seen = (resized[0] + margins[0], resized[1] + margins[1])
            offset = (-(margins[0] // 2), -(margins[1] // 2))
        return cls((height, width), resized, offset, seen, patch)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.seen[0] // self.patch_size, self.seen[1] // self.patch_size

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Map points (..., 2) from the picture that the model sees to the original picture, float64."""
        scale = np.divide(self.original[::-1], self.resized[::-1])
        return (np.asarray(points, np.float64) + self.offset[::-1] + 0.5) * scale - 0.5

    def to_seen(self, points: np.ndarray) -> np.ndarray:
        """Map points (..., 2) from the original picture to the one that the model sees, float64."""
        scale = np.divide(self.resized[::-1], self.original[::-1])
        return (np.asarray(points, np.float64) + 0.5) * scale - self.offset[::-1] - 0.5

    def patch_centres(self) -> np.ndarray:
        """Return the centre of every patch in the original picture, (grid_h, grid_w, 2) float64."""
        rows, columns = (np.arange(count) * self.patch_size + (self.patch_size - 1) / 2 for count in self.grid)
        return self.to_original(np.stack(np.meshgrid(columns, rows), axis=-1))

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """Return the row and the column of the patch that holds a point of the original picture.

        Raises:
            FovealError: the point is outside the picture, or in a part of it that the model does not see.
        """
        height, width = self.original
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise FovealError(
                f"the point {x:g},{y:g} is outside the picture of {width} x {height} pixels; "
                f"choose X in 0..{width - 1} and Y in 0..{height - 1}"
            )
        column, row = (math.floor(v) for v in (self.to_seen(np.array([x, y])) + 0.5) / self.patch_size)
        if not (0 <= row < self.grid[0] and 0 <= column < self.grid[1]):
            (left, top), (right, bottom) = self.to_original(np.array([[-0.5, -0.5], np.subtract(self.seen[::-1], 0.5)]))
            raise FovealError(
                f"the point {x:g},{y:g} of the picture of {width} x {height} pixels is cut away before the model sees "
                f"it, which leaves X from {max(left, 0):.1f} to {min(right, width - 1):.1f} and Y from "
                f"{max(top, 0):.1f} to {min(bottom, height - 1):.1f}; choose a point there, or fit='resize'"
            )
        return row, column
