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
from PIL import Image, ImageDraw, ImageFont

import foveal
from foveal.errors import BadImageError
from foveal.features.lookup import SearchResult, row_number, stored_images
from foveal.features.pictures import displayed, fitted, picture_grid
from foveal.features.store import FeatureStore
from foveal.images.preprocess import ImageLike, Preprocess, to_array

logger = logging.getLogger(__name__)

_SMALLEST_CELL = 64
_FAINT, _EMPTY = (85, 96, 110), (226, 230, 236)


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
        cell_size: longer side of every thumbnail, pixels.

    Returns:
        For each query a list: the query itself, then its neighbours.
    """
    wanted = sorted(set(result.rows.flatten().tolist()))
    images, channels = stored_images(store, wanted), _channels(store)
    found: dict[int, Image.Image | None] = {}
    problems = []
    for place, row in enumerate(wanted):
        try:
            found[row] = fitted(displayed(images.decode(place, channels=channels, min_short_side=cell_size)), cell_size)
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
    """Draw a gallery as one picture: queries on the left, their neighbours to the right below their similarity."""
    sizes = [max(shown.thumbnail.size) for line in lines for shown in line if shown.thumbnail is not None]
    cell_size = max([_SMALLEST_CELL, *sizes])
    pictures = [
        [_placeholder(cell_size) if shown.thumbnail is None else shown.thumbnail for shown in line] for line in lines
    ]
    labels = [["query" if shown.similarity is None else f"{shown.similarity:.3f}" for shown in line] for line in lines]
    return picture_grid(pictures, labels=labels, cell_size=cell_size)


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
    row, channels = row_number(store, query), _channels(store)
    if row < 0:
        return fitted(displayed(to_array(query, channels=channels)), cell_size)
    try:
        return fitted(displayed(stored_images(store, [row]).decode(0, channels=channels)), cell_size)
    except BadImageError as error:
        logger.warning("%s cannot be shown: %s", query, error)
        return None


def _channels(store: FeatureStore) -> int:
    return Preprocess.from_stamp(store.stamp["preprocessing"]).channels


def _placeholder(cell_size: int) -> Image.Image:
    empty = Image.new("RGB", (cell_size, cell_size), _EMPTY)
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(empty).text((cell_size / 2, cell_size / 2), "not readable", fill=_FAINT, font=font, anchor="mm")
    return empty


def _data_url(thumbnail: Image.Image) -> str:
    data = io.BytesIO()
    thumbnail.save(data, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
