"""Pictures put together from pictures: grids with labels and frames, heat maps, overlays, marks and scales.

Every result is a function of its arguments alone, to the pixel. Pictures are (H, W, 3) uint8 arrays or Pillow images.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal.errors import FovealError

Picture = np.ndarray | Image.Image
Colour = tuple[int, int, int]
T = TypeVar("T")

GREEN: Colour = (30, 150, 60)
RED: Colour = (200, 50, 40)
FRAME = 3  # pixels on each side of a framed picture
_GAP = 4
_TEXT_SIZE = 12
_TEXT_HEIGHT = 16
_HEAT_SHARE = 0.6  # of an overlay; the rest is the picture in grey


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
    cells = [[None if picture is None else fitted(picture, cell_size) for picture in row] for row in rows]
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


def bands(lines: Sequence[Sequence[T]], *, length: int = 8) -> list[Sequence[T]]:
    """Break long parallel lines: the first `length` of every line, then the next of every line, and so on.

    Example:
        >>> bands(["abc", "123"], length=2)
        ['ab', '12', 'c', '3']
    """
    return [line[start : start + length] for start in range(0, len(lines[0]), length) for line in lines]


def enlarged(cells: np.ndarray, size: int) -> np.ndarray:
    """Repeat the cells of (h, w, 3) until the longer side is at least `size` pixels: patches keep sharp edges."""
    _check_size(size)
    times = -(-size // max(cells.shape[:2]))
    return cells.repeat(times, axis=0).repeat(times, axis=1)


def heat(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Colour numbers by viridis, which grows evenly lighter: `low` and below dark blue, `high` and above yellow.

    Args:
        values: (h, w) float, finite.
        low: start of the scale.
        high: its end; where it is not above `low`, everything gets the colour of the middle.

    Returns:
        (h, w, 3) uint8.
    """
    share = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return _table("viridis")[_entry(share)]


def rainbow(shares: np.ndarray) -> list[Colour]:
    """Return one colour for each number in 0..1, from blue over green to red, to tell lines apart."""
    return [(int(r), int(g), int(b)) for r, g, b in _table("turbo")[_entry(shares)]]


def overlay(pixels: np.ndarray, values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Lay a heat map over a picture in grey, so that every colour is the map's.

    Args:
        pixels: (H, W, 3) uint8.
        values: (h, w) float, for equal parts of the picture; interpolated bilinearly between their centres.
        low: see `heat`.
        high: see `heat`.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = pixels.shape[:2]
    fine = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float64)[..., None]
    mixed = _HEAT_SHARE * heat(np.asarray(fine, np.float64), low=low, high=high) + (1 - _HEAT_SHARE) * grey
    return np.rint(mixed).astype(np.uint8)


def marked(picture: Picture, x: float, y: float, *, radius: int = 5, colour: Colour = (255, 255, 255)) -> Image.Image:
    """Draw a ring around a point, outlined in black so that it is seen on any ground.

    Args:
        picture: is not changed.
        x: pixels from the left; whole numbers are centres of pixels.
        y: pixels from the top.
        radius: of the ring, pixels.
        colour: of the ring.
    """
    image = as_image(picture).copy()
    draw = ImageDraw.Draw(image)
    for grow, width, ink in ((1, 4, (0, 0, 0)), (0, 2, colour)):
        reach = radius + grow
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=ink, width=width)
    return image


def scale_bar(low: float, high: float, *, width: int) -> Image.Image:
    """Draw the scale of `heat` from left to right with the numbers at its ends."""
    bar = np.tile(np.linspace(low, high, max(width, 2)), (10, 1))
    image = Image.new("RGB", (bar.shape[1], 10 + _TEXT_HEIGHT), "white")
    image.paste(Image.fromarray(heat(bar, low=low, high=high)), (0, 0))
    draw = ImageDraw.Draw(image)
    draw.text((1, 10), f"{low:.3g}", fill="black", font=_font())
    text = f"{high:.3g}"
    draw.text((image.width - 1 - _font().getlength(text), 10), text, fill="black", font=_font())
    return image


def stacked(pictures: Sequence[Picture], *, gap: int = _GAP) -> Image.Image:
    """Put pictures of any sizes one below the other, unscaled, at the left on white."""
    images = [as_image(picture) for picture in pictures]
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    whole = Image.new("RGB", (max(image.width for image in images), height), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height + gap
    return whole


def shortened(text: str, width: int) -> str:
    """Cut a line of text so that it is at most `width` pixels wide, with an ellipsis in place of what is missing."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


def displayed(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, C) uint8 or uint16 of any channels as (H, W, 3) uint8 to look at.

    One channel is grey. Of others the first three are red, green and blue, a missing third one is black, and 65535
    becomes 255.
    """
    shown = pixels[:, :, :3]
    if shown.dtype != np.uint8:
        shown = np.rint(shown / 257).astype(np.uint8)
    if shown.shape[2] == 1:
        return shown.repeat(3, axis=2)
    return np.ascontiguousarray(np.pad(shown, ((0, 0), (0, 0), (0, 3 - shown.shape[2]))))


def as_image(picture: Picture) -> Image.Image:
    """Return a picture as a Pillow image in RGB."""
    return (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).convert("RGB")


def fitted(picture: Picture, size: int) -> Image.Image:
    """Scale a picture in its proportions so that its longer side is `size` pixels."""
    _check_size(size)
    image = as_image(picture)
    factor = size / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _TEXT_SIZE)


@cache
def _table(name: str) -> np.ndarray:
    """Return the 256 colours of one of matplotlib's maps, (256, 3) uint8."""
    import matplotlib

    return np.rint(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)


def _entry(shares: np.ndarray) -> np.ndarray:
    return np.rint(shares.clip(0, 1) * 255).astype(np.int64)


def _check_size(size: int) -> None:
    if size < 1:
        raise FovealError(f"cell_size={size}; it must be at least 1")
