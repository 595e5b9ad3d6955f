"""The sizes of pictures, read from their headers once and kept: masks and boxes are of that size."""

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence

from foveal.annotate.database import Database
from foveal.annotate.queries import rows_of
from foveal.errors import BadImageError, ImageSetError, ProjectError, UnwritableProjectError
from foveal.features.batches import map_ahead
from foveal.images.decode import read_size
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)

Size = tuple[int, int]
_NUM_THREADS = 2


def sizes_of(
    database: Database, open_images: Callable[[], ImageSet], uris: Sequence[str], *, missing: bool
) -> dict[str, Size]:
    """Return width and height of pictures in pixels, upright, by their uris.

    Args:
        database: the project's.
        open_images: opens its image set, where one must be read.
        uris: of the pictures.
        missing: leave out those that cannot be read.

    Raises:
        ProjectError: a uri that the project does not have, or a picture that cannot be read, unless `missing`.
    """
    rows = _rows(database, uris)
    found = {uri: (row["width"], row["height"]) for uri, row in rows.items() if row["width"] is not None}
    lacking = {uri: row["id"] for uri, row in rows.items() if uri not in found}
    if lacking:
        read = _read(open_images, lacking, missing=missing)
        _keep(database, read)
        found |= read
    return found


def size_now(database: Database, open_images: Callable[[], ImageSet], uri: str) -> Size:
    """Return width and height of a picture as it is by now; of one with masks or boxes, as it was when they were made.

    Args:
        database: the project's.
        open_images: opens its image set.
        uri: of the picture.

    Raises:
        ProjectError: a uri that the project does not have, or a picture that cannot be read and never was.
    """
    row = _rows(database, [uri])[uri]
    kept = None if row["width"] is None else (row["width"], row["height"])
    with database.reading() as connection:
        marked = connection.execute(
            "SELECT 1 FROM annotations WHERE image = ? AND NOT (counts IS NULL AND box IS NULL) LIMIT 1", (row["id"],)
        ).fetchone()
    if kept and marked:
        return kept
    try:
        found = _read(open_images, {uri: row["id"]}, missing=False)
    except ProjectError:
        if kept is None:
            raise
        return kept
    if found[uri] != kept:
        _keep(database, found)
    return found[uri]


def _rows(database: Database, uris: Sequence[str]) -> dict[str, sqlite3.Row]:
    with database.reading() as connection:
        rows = rows_of(connection, uris)
    if unknown := [uri for uri in uris if uri not in rows]:
        raise ProjectError(f"the project has no image {unknown[0]!r}; give a uri of its image set")
    return rows


def _keep(database: Database, sizes: Mapping[str, Size]) -> None:
    """Write sizes down; images are shown on a full disk, too, and read again."""
    try:
        with database.writing() as connection:
            connection.executemany(
                "UPDATE images SET width = ?, height = ? WHERE uri = ?", [(*size, uri) for uri, size in sizes.items()]
            )
    except UnwritableProjectError as error:
        logger.warning("the sizes of %d images are not kept: %s", len(sizes), error)


def _read(open_images: Callable[[], ImageSet], rows: dict[str, int], *, missing: bool) -> dict[str, Size]:
    try:
        images = open_images()
    except ImageSetError as error:
        if missing:
            return {}
        raise ProjectError(f"the size of {next(iter(rows))} is not known: {error}") from error

    def read(row: int) -> Size | BadImageError:
        try:
            return read_size(images.read(row))
        except BadImageError as error:
            return error

    found: dict[str, Size] = {}
    for uri, answer in zip(rows, map_ahead(read, rows.values(), _NUM_THREADS, ahead=16), strict=True):
        if not isinstance(answer, BadImageError):
            found[uri] = answer
        elif not missing:
            raise ProjectError(f"the size of {uri} is not known, since it cannot be read: {answer}") from answer
    return found
