"""Pictures of what a search found: a sheet as one image, and a page that needs nothing beside it.

Shapes: Q queries, k neighbours, H W pixels.
"""

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import foveal
from foveal.errors import BadImageError
from foveal.features.lookup import SearchResult, row_number, stored_images
from foveal.features.store import FeatureStore
from foveal.images.preprocess import ImageLike, to_rgb_array

logger = logging.getLogger(__name__)

_GAP, _TEXT, _SMALLEST_CELL = 6, 18, 64
_INK, _FAINT, _EMPTY = (29, 35, 43), (85, 96, 110), (226, 230, 236)


@dataclass(frozen=True)
class Shown:
    """One picture of the gallery: a thumbnail, None where the file cannot be read any more, and its words."""

    thumbnail: Image.Image | None
    title: str
    similarity: float | None = None


def gallery(store: FeatureStore, result: SearchResult, *, cell_size: int = 160) -> list[list[Shown]]:
    """Load a thumbnail of each query and of each of its neighbours.

    Images that cannot be read any more are shown as empty cells, counted and warned of.

    Args:
        store: that was searched.
        result: of the search.
        cell_size: longest side of a thumbnail, pixels.

    Returns:
        For each query a list: the query itself, then its neighbours.
    """
    wanted = sorted(set(result.rows.flatten().tolist()))
    images = stored_images(store, wanted)
    found: dict[int, Image.Image | None] = {}
    problems = []
    for place, row in enumerate(wanted):
        try:
            found[row] = _thumbnail(images.decode(place, min_short_side=cell_size), cell_size)
        except BadImageError as error:
            found[row] = None
            problems.append(str(error))
    if problems:
        logger.warning("%d of %d pictures cannot be shown, first: %s", len(problems), len(wanted), problems[0])
    lines = []
    for query, rows, similarities, uris in zip(
        result.queries, result.rows.tolist(), result.similarities.tolist(), result.uris, strict=True
    ):
        line = [Shown(_query_thumbnail(store, query, cell_size), query_title(query))]
        line += [
            Shown(found[row], uri, similarity) for row, uri, similarity in zip(rows, uris, similarities, strict=True)
        ]
        lines.append(line)
    return lines


def sheet(lines: Sequence[Sequence[Shown]]) -> Image.Image:
    """Draw a gallery as one picture: queries on the left, their neighbours to the right above their similarity."""
    thumbnails = [shown.thumbnail for line in lines for shown in line if shown.thumbnail is not None]
    cell_size = max([_SMALLEST_CELL, *(max(thumbnail.size) for thumbnail in thumbnails)])
    step, row_height = cell_size + _GAP, cell_size + _TEXT + _GAP
    columns = max(len(line) for line in lines)
    split = 3 * _GAP  # between a query and its neighbours
    sheet = Image.new("RGB", (columns * step + split + _GAP, len(lines) * row_height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for number, line in enumerate(lines):
        top = _GAP + number * row_height
        for column, shown in enumerate(line):
            left = _GAP + column * step + (split if column else 0)
            _paste(sheet, draw, shown, (left, top), cell_size)
            text = "query" if shown.similarity is None else f"{shown.similarity:.3f}"
            colour = _FAINT if shown.similarity is None else _INK
            draw.text((left + cell_size / 2, top + cell_size + 3), text, fill=colour, font=font, anchor="mt")
        middle = _GAP + step + split / 2 - _GAP / 2
        draw.line([(middle, top), (middle, top + cell_size)], fill=_EMPTY, width=2)
    return sheet


def page(lines: Sequence[Sequence[Shown]], *, title: str, how: str) -> str:
    """Return a gallery as HTML, with the thumbnails inside.

    Args:
        lines: see `gallery`.
        title: of the page.
        how: one line about the search.
    """
    template = jinja2.Template((resources.files("foveal") / "features" / "gallery.html").read_text(), autoescape=True)
    cells = [
        [
            {
                "url": None if shown.thumbnail is None else _data_url(shown.thumbnail),
                "title": shown.title,
                "similarity": None if shown.similarity is None else f"{shown.similarity:.3f}",
            }
            for shown in line
        ]
        for line in lines
    ]
    return template.render(lines=cells, title=title, how=how, version=foveal.__version__)


def query_title(query: ImageLike) -> str:
    """Return the words for a query: a path or a row as given, or what kind of picture it is."""
    return str(query) if isinstance(query, str | Path) else type(query).__name__


def _query_thumbnail(store: FeatureStore, query: ImageLike, cell_size: int) -> Image.Image | None:
    row = row_number(store, query)
    if row < 0:
        return _thumbnail(to_rgb_array(query), cell_size)
    try:
        return _thumbnail(stored_images(store, [row]).decode(0), cell_size)
    except BadImageError as error:
        logger.warning("%s cannot be shown: %s", query, error)
        return None


def _thumbnail(pixels: np.ndarray, cell_size: int) -> Image.Image:
    """Shrink to fit; small pictures stay as they are."""
    thumbnail = Image.fromarray(pixels)
    thumbnail.thumbnail((cell_size, cell_size), Image.Resampling.LANCZOS)
    return thumbnail


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, shown: Shown, corner: tuple[int, int], cell_size: int
) -> None:
    left, top = corner
    if shown.thumbnail is None:
        draw.rectangle((left, top, left + cell_size - 1, top + cell_size - 1), fill=_EMPTY)
        middle = (left + cell_size / 2, top + cell_size / 2)
        draw.text(middle, "not readable", fill=_FAINT, font=ImageFont.load_default(size=13), anchor="mm")
        return
    width, height = shown.thumbnail.size
    sheet.paste(shown.thumbnail, (left + (cell_size - width) // 2, top + (cell_size - height) // 2))


def _data_url(thumbnail: Image.Image) -> str:
    data = io.BytesIO()
    thumbnail.save(data, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
