"""Pictures put together from pictures: grids with labels and frames, heat maps, overlays, marks and scales.

Every result is a function of its arguments alone, to the pixel. Pictures are (H, W, 3) uint8 arrays or Pillow images.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal.errors import FovealError

Picture = np.ndarray | Image.Image
Colour = tuple[int, int, int]

GREEN: Colour = (30, 150, 60)
RED: Colour = (200, 50, 40)
FRAME = 3  # pixels on each side of a framed picture
_GAP = 4
_TEXT_SIZE = 12
_TEXT_HEIGHT = 16


def picture_grid(
    rows: Sequence[Sequence[Picture | None]],
    *,
    labels: Sequence[Sequence[str]] | None = None,
    frames: Sequence[Sequence[Colour | None]] | None = None,
    cell_size: int = 224,
) -> Image.Image:
    """Lay pictures out in rows and columns on white, each scaled in its proportions to fit a square.

    A column is as wide, and a row as high, as its largest picture; rows may be of different lengths.

    Args:
        rows: the pictures; None leaves a place empty.
        labels: a line of text above each picture, "" for none, shaped as `rows`; shortened where it is too long.
        frames: a colour around each picture, None for none, shaped as `rows`.
        cell_size: the longer side of every picture, pixels.

    Raises:
        FovealError: nothing to show, labels or frames shaped otherwise, or `cell_size` below 1.

    Example:
        >>> square = np.zeros((10, 10, 3), dtype=np.uint8)
        >>> picture_grid([[square, square]], labels=[["a", "b"]], cell_size=50).size
        (104, 66)
    """
    if cell_size < 1:
        raise FovealError(f"cell_size={cell_size}; it must be at least 1")
    cells = [[None if picture is None else _fitted(picture, cell_size) for picture in row] for row in rows]
    if not any(cell is not None for row in cells for cell in row):
        raise FovealError("a grid without a picture; give at least one")
    shape = [len(row) for row in rows]
    for name, given in (("labels", labels), ("frames", frames)):
        if given is not None and [len(row) for row in given] != shape:
            raise FovealError(f"{name} are {[len(row) for row in given]} a row, the pictures {shape}; give as many")
    texts = labels or [[""] * length for length in shape]
    colours = frames or [[None] * length for length in shape]
    margin = 2 * FRAME if frames else 0
    places = [
        [(0, 0) if cell is None else (cell.width + margin, cell.height + margin) for cell in row] for row in cells
    ]
    widths = [max(row[i][0] for row in places if i < len(row)) for i in range(max(shape))]
    heights = [max((height for _, height in row), default=0) for row in places]
    strips = [_TEXT_HEIGHT if any(row) else 0 for row in texts]
    total = (sum(widths) + _GAP * (len(widths) - 1), sum(heights) + sum(strips) + _GAP * (len(heights) - 1))
    grid = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(grid)
    top = 0
    for row, row_texts, row_colours, height, strip in zip(cells, texts, colours, heights, strips, strict=True):
        left = 0
        for cell, text, colour, width in zip(row, row_texts, row_colours, widths, strict=False):
            draw.text((left + 1, top), shortened(text, width), fill="black", font=_font())
            if cell is not None:
                if colour is not None:
                    box = (left, top + strip, left + cell.width + margin, top + strip + cell.height + margin)
                    grid.paste(colour, box)
                grid.paste(cell, (left + margin // 2, top + strip + margin // 2))
            left += width + _GAP
        top += height + strip + _GAP
    return grid


def shortened(text: str, width: int) -> str:
    """Cut a line of text so that it is at most `width` pixels wide, with an ellipsis in place of what is missing."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


def as_image(picture: Picture) -> Image.Image:
    """Return a picture as a Pillow image in RGB."""
    return (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).convert("RGB")


def _fitted(picture: Picture, size: int) -> Image.Image:
    image = as_image(picture)
    factor = size / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _TEXT_SIZE)
