"""All that is read from a project, and how it leaves."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from foveal.annotate import classes, exchange, queries, writing
from foveal.annotate.checks import check_one_of
from foveal.annotate.creation import IMAGES
from foveal.annotate.database import Database
from foveal.annotate.image_sizes import Size, size_now, sizes_of
from foveal.annotate.journal import (
    newest_revision,
    redo_target,
    undo_target,
)
from foveal.annotate.presence import ImagesNow, images_now
from foveal.annotate.queries import Filter, Labels
from foveal.annotate.records import (
    Changes,
    Class,
    Conflict,
    ProjectImage,
    Record,
)
from foveal.annotate.saving import Saved, save_image_set
from foveal.annotate.types import AnnotatedSet, State
from foveal.images.imageset import ImageSet

ANYBODY = "python"


class ProjectReader:
    """What an open project tells; `foveal.annotate.project.Project` also writes."""

    def __init__(self, folder: Path, database: Database) -> None:
        """Take an open database; `create` and `open` make one."""
        self.folder, self._database = folder, database
        with database.reading() as connection:
            [self.created] = map(float, connection.execute("SELECT value FROM facts WHERE name = 'created'").fetchone())
            self.num_images: int = connection.execute("SELECT count(*) FROM images").fetchone()[0]
        self.model = self._read_model()

    def _read_model(self) -> dict[str, str] | None:
        with self._database.reading() as connection:
            facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        return {"name": facts["model_name"], "sha256": facts["model_sha256"]} if "model_name" in facts else None

    @cached_property
    def image_set(self) -> ImageSet:
        """The image set, with the same rows and hash as when the project was made.

        Raises:
            ImageSetError: the folder of the images is gone.
        """
        return ImageSet.open(self.folder / IMAGES)

    @property
    def revision(self) -> int:
        """The number of the last step."""
        with self._database.reading() as connection:
            return newest_revision(connection)

    def classes(self) -> tuple[Class, ...]:
        """Return the classes in the order in which they were added."""
        with self._database.reading() as connection:
            return classes.list_classes(connection)

    def count(self, chosen: Filter = Filter()) -> int:  # noqa: B008 (frozen)
        """Return how many images a filter leaves."""
        with self._database.reading() as connection:
            return queries.count_images(connection, chosen)

    def page(self, start: int = 0, count: int = 200, *, chosen: Filter = Filter()) -> tuple[ProjectImage, ...]:  # noqa: B008
        """Return `count` of the images that a filter leaves, from place `start`, in the order of the set."""
        with self._database.reading() as connection:
            return queries.page_of(connection, start, count, chosen)

    def images(self, indices: Sequence[int]) -> tuple[ProjectImage, ...]:
        """Return images by their rows; ProjectError for one that is not there."""
        with self._database.reading() as connection:
            return queries.images_at(connection, indices)

    def index(self, uri: str) -> int:
        """Return the row of an image; ProjectError where the project does not have it."""
        with self._database.reading() as connection:
            return queries.index_of(connection, uri)

    def annotations(
        self,
        uri: str | None = None,
        *,
        class_name: str | None = None,
        states: Iterable[State] = (),
        track: str | None = None,
        ids: Sequence[int] | None = None,
    ) -> tuple[Record, ...]:
        """Return the annotations that fit all that is given, in the order of their images and ids."""
        with self._database.reading() as connection:
            return queries.records(connection, uri=uri, class_name=class_name, states=states, track=track, ids=ids)

    def written(self, client: str, request: str) -> dict[int, int]:
        """Return the annotations that are as a client wrote them by requests whose names begin so: ids, revisions."""
        with self._database.reading() as connection:
            return queries.written(connection, client, request)

    def labels(self) -> Labels:
        """Return the accepted labels of whole images: what a head learns from, and is measured with."""
        with self._database.reading() as connection:
            return queries.labels(connection)

    def held_out_rows(self) -> np.ndarray:
        """Return the rows of the images whose labels measure and do not teach, int64."""
        with self._database.reading() as connection:
            return queries.held_out_rows(connection)

    def closed_rows(self) -> np.ndarray:
        """Return the rows of the images that somebody has finished or skipped, int64."""
        with self._database.reading() as connection:
            return queries.closed_rows(connection)

    def changes_since(self, revision: int) -> Changes:
        """Return what changed after a revision, so that several windows follow each other."""
        with self._database.reading() as connection:
            return queries.changes_since(connection, revision)

    def done(self) -> tuple[str, ...]:
        """Return the uris of the images on which all was said that is to be said."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT uri FROM images WHERE state = 'done' ORDER BY id").fetchall()
        return tuple(row[0] for row in rows)

    def unknown(self, uris: Sequence[str]) -> tuple[str, ...]:
        """Return those of the uris that the project does not have."""
        with self._database.reading() as connection:
            known = queries.rows_of(connection, list(dict.fromkeys(uris)))
        return tuple(uri for uri in dict.fromkeys(uris) if uri not in known)

    def size(self, uri: str) -> Size:
        """Return width and height of an image in pixels, upright: by now, or as it was when something was masked on it.

        Raises:
            ProjectError: an image that the project does not have, or that never could be read.
        """
        return size_now(self._database, lambda: self.image_set, uri)

    def sizes(self, uris: Sequence[str], *, missing: bool = False) -> dict[str, Size]:
        """Return width and height of images in pixels, upright; read once from their headers.

        Args:
            uris: of the images.
            missing: leave out those that cannot be read.

        Raises:
            ProjectError: an image that the project does not have, or that cannot be read, unless `missing`.
        """
        return sizes_of(self._database, lambda: self.image_set, uris, missing=missing)

    def images_now(self) -> ImagesNow:
        """Tell which images are gone or are other ones by now; what was said about them is kept."""
        return images_now(self.image_set, since=self.created)

    def can(self, *, client: str = ANYBODY) -> tuple[str | None, str | None]:
        """Return in words what a client can undo and redo."""
        with self._database.reading() as connection:
            undone, redone = undo_target(connection, client), redo_target(connection, client)
        return undone and undone.words, redone and redone.words

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return the changes that were refused since somebody else had changed the same, until they are settled."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT * FROM conflicts ORDER BY id").fetchall()
            return tuple(writing.conflict_of(connection, row) for row in rows)

    def to_set(self, *, states: Sequence[State] = ("accepted",)) -> AnnotatedSet:
        """Return the annotations in some states, with the pictures they are on and those that are done.

        A picture that can no longer be read has the size of its mask, or 0 x 0.
        """
        return exchange.to_set(self, states)

    def save_image_set(self, folder: str | Path, *, of: Literal["labels", "masks"]) -> Saved:
        """Write the accepted labels or masks as an image set: what heads are fitted on and measured with.

        Labels are the column label. Masks are `masks/NNNNNNNN.png` below the folder, named by the column mask_uri, with
        the classes in `classes.txt`; what no mask covers is background, what nobody has decided is 255 and does not
        count. The column split says which images are held out ("test"), where some are and some are not.

        Args:
            folder: a new one; it is whole or absent.
            of: labels of whole images, or masks (and boxes, as filled rectangles).

        Raises:
            ProjectError: a folder in use, nothing accepted, or it cannot be written.
        """
        check_one_of("of", of, ("labels", "masks"))
        return save_image_set(self, Path(folder).absolute(), of=of)
