"""What is read from a project: pages of images, annotations, labels to learn from, and what changed."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from foveal.annotate.classes import find_class
from foveal.annotate.journal import newest_revision
from foveal.annotate.records import Changes, ImageState, ProjectImage, Record, record_of
from foveal.annotate.types import State
from foveal.errors import ProjectError

_RECORDS = (
    "SELECT annotations.*, images.uri, classes.name AS class_name FROM annotations "
    "JOIN images ON images.id = annotations.image JOIN classes ON classes.id = annotations.class"
)
_WHOLE = "counts IS NULL AND box IS NULL"
_MOST_CHANGES = 5_000
_AT_ONCE = 500  # values in one statement
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Filter:
    """Which images: all, or those in a state, or with an annotation of a class, in some states, or both.

    Attributes:
        state: of the image.
        class_name: of an annotation on it.
        annotation_states: of an annotation on it.
    """

    state: ImageState | None = None
    class_name: str | None = None
    annotation_states: tuple[State, ...] = ()


@dataclass(frozen=True)
class Labels:
    """Accepted labels of whole images (L).

    Attributes:
        index: rows of the images, (L,) int64.
        names: their classes.
        held_out: (L,) bool: measures and does not teach.
    """

    index: np.ndarray
    names: tuple[str, ...]
    held_out: np.ndarray


def count_images(connection: sqlite3.Connection, chosen: Filter) -> int:
    """Return how many images a filter leaves."""
    condition, values = _condition(connection, chosen)
    found: int = connection.execute(f"SELECT count(*) FROM images WHERE {condition}", values).fetchone()[0]
    return found


def page_of(connection: sqlite3.Connection, start: int, count: int, chosen: Filter) -> tuple[ProjectImage, ...]:
    """Return `count` of the images that a filter leaves, from the one at place `start`, in the order of the set."""
    if start < 0 or not 0 < count <= 10_000:
        raise ProjectError(f"start={start}, count={count}; give a start of at least 0 and a count from 1 to 10,000")
    condition, values = _condition(connection, chosen)
    if condition == "1":  # rows are numbered from 0 on
        condition, values, start = "id >= ?", [start], 0
    rows = connection.execute(
        f"SELECT * FROM images WHERE {condition} ORDER BY id LIMIT ? OFFSET ?", (*values, count, start)
    ).fetchall()
    return _images_of(connection, rows)


def images_at(connection: sqlite3.Connection, indices: Sequence[int]) -> tuple[ProjectImage, ...]:
    """Return images by their rows, in this order; ProjectError names one that is not there."""
    rows: dict[int, sqlite3.Row] = {}
    for some in _portions(indices):
        rows |= {
            row["id"]: row
            for row in connection.execute(f"SELECT * FROM images WHERE id IN ({_marks(some)})", some).fetchall()
        }
    if missing := [index for index in indices if index not in rows]:
        raise ProjectError(f"the project has no image {missing[0]}; its images are numbered from 0 on")
    return _images_of(connection, [rows[index] for index in indices])


def index_of(connection: sqlite3.Connection, uri: str) -> int:
    """Return the row of an image; ProjectError where the project does not have it."""
    row = connection.execute("SELECT id FROM images WHERE uri = ?", (uri,)).fetchone()
    if row is None:
        raise ProjectError(f"the project has no image {uri!r}; give a uri of its image set")
    return int(row[0])


def rows_of(connection: sqlite3.Connection, uris: Sequence[str]) -> dict[str, sqlite3.Row]:
    """Return the rows of those images that the project has, by their uris."""
    found: dict[str, sqlite3.Row] = {}
    for some in _portions(uris):
        for row in connection.execute(f"SELECT * FROM images WHERE uri IN ({_marks(some)})", some):
            found[row["uri"]] = row
    return found


def records(
    connection: sqlite3.Connection,
    *,
    uri: str | None = None,
    class_name: str | None = None,
    states: Iterable[State] = (),
    track: str | None = None,
    ids: Sequence[int] | None = None,
) -> tuple[Record, ...]:
    """Return the annotations that fit all that is given, in the order of their images and ids."""
    conditions: list[str] = ["1"]
    values: list[Any] = []
    if uri is not None:
        conditions.append("image = ?")
        values.append(index_of(connection, uri))
    if class_name is not None:
        conditions.append("class = ?")
        values.append(find_class(connection, class_name))
    if wanted := tuple(states):
        conditions.append(f"annotations.state IN ({_marks(wanted)})")
        values += wanted
    if track is not None:
        conditions.append("track = ?")
        values.append(track)
    found: list[Record] = []
    for some in [None] if ids is None else _portions(ids):
        here = [*conditions, f"annotations.id IN ({_marks(some)})"] if some is not None else conditions
        rows = connection.execute(
            f"{_RECORDS} WHERE {' AND '.join(here)} ORDER BY image, annotations.id", (*values, *(some or ()))
        )
        found += map(record_of, rows)
    return tuple(found)


def written(connection: sqlite3.Connection, client: str, request: str) -> dict[int, int]:
    """Return ids and revisions of annotations that are as steps of a client left them whose requests begin so."""
    rows = connection.execute(
        "SELECT annotations.id, annotations.revision FROM steps JOIN changes USING (revision) JOIN annotations "
        "ON annotations.id = changes.row AND annotations.revision = changes.after "
        "WHERE steps.request >= ? AND steps.request < ? AND steps.client = ? AND changes.place = 'annotations'",
        (request, request + chr(0x10FFFF), client),
    )
    return dict(rows.fetchall())


def labels(connection: sqlite3.Connection) -> Labels:
    """Return the accepted labels of whole images, in the order of the set."""
    rows = connection.execute(
        "SELECT image, classes.name, held_out FROM annotations JOIN images ON images.id = image "
        f"JOIN classes ON classes.id = class WHERE annotations.state = 'accepted' AND {_WHOLE} ORDER BY image"
    ).fetchall()
    return Labels(
        np.array([row[0] for row in rows], np.int64),
        tuple(row[1] for row in rows),
        np.array([row[2] for row in rows], bool),
    )


def held_out_rows(connection: sqlite3.Connection) -> np.ndarray:
    """Return the rows of the images whose labels measure, int64, ascending."""
    rows = connection.execute("SELECT id FROM images WHERE held_out ORDER BY id").fetchall()
    return np.array([row[0] for row in rows], np.int64)


def closed_rows(connection: sqlite3.Connection) -> np.ndarray:
    """Return the rows of the images that somebody has finished or skipped, int64, ascending."""
    rows = connection.execute("SELECT id FROM images WHERE state != 'open' ORDER BY id").fetchall()
    return np.array([row[0] for row in rows], np.int64)


def changes_since(connection: sqlite3.Connection, revision: int) -> Changes:
    """Return what others, or this client, changed after a revision."""
    newest = newest_revision(connection)
    if revision > newest:
        raise ProjectError(f"revision={revision}; the project is at {newest}: read it anew")
    found = connection.execute(
        "SELECT DISTINCT place, row FROM changes WHERE revision > ? LIMIT ?", (revision, _MOST_CHANGES + 1)
    ).fetchall()
    if len(found) > _MOST_CHANGES:
        return Changes(newest, everything=True)
    changed = sorted(row["row"] for row in found if row["place"] == "annotations")
    present = records(connection, ids=changed)
    there = {record.annotation.id for record in present}
    images = {row["row"] for row in found if row["place"] == "images"} | {record.index for record in present}
    removed = tuple(one for one in changed if one not in there)
    images |= _images_before(connection, revision, removed)
    return Changes(newest, present, removed, tuple(sorted(images)), any(row["place"] == "classes" for row in found))


def _images_before(connection: sqlite3.Connection, revision: int, removed: Sequence[int]) -> set[int]:
    """Return the rows of the images on which annotations were that are gone: the first value of their rows."""
    found = set()
    for some in _portions(removed):
        rows = connection.execute(
            "SELECT json_extract(before, '$[0]') FROM changes WHERE place = 'annotations' AND before IS NOT NULL "
            f"AND revision > ? AND row IN ({_marks(some)})",
            (revision, *some),
        )
        found |= {int(row[0]) for row in rows}
    return found


def _condition(connection: sqlite3.Connection, chosen: Filter) -> tuple[str, list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    if chosen.state is not None:
        conditions.append("state = ?")
        values.append(chosen.state)
    inner: list[str] = []
    if chosen.class_name is not None:
        inner.append("class = ?")
        values.append(find_class(connection, chosen.class_name))
    if chosen.annotation_states:
        inner.append(f"state IN ({_marks(chosen.annotation_states)})")
        values += chosen.annotation_states
    if inner:
        conditions.append(f"id IN (SELECT image FROM annotations WHERE {' AND '.join(inner)})")
    return " AND ".join(conditions) or "1", values


def _images_of(connection: sqlite3.Connection, rows: Sequence[sqlite3.Row]) -> tuple[ProjectImage, ...]:
    whole: dict[int, list[Record]] = defaultdict(list)
    marks: dict[tuple[int, bool], int] = defaultdict(int)
    for some in _portions([row["id"] for row in rows]):
        found = connection.execute(
            f"{_RECORDS} WHERE image IN ({_marks(some)}) AND annotations.state != 'rejected' AND {_WHOLE}", some
        )
        for record in map(record_of, found):
            whole[record.index].append(record)
        counted = connection.execute(
            f"SELECT image, state = 'accepted' AS accepted, count(*) FROM annotations WHERE image IN ({_marks(some)}) "
            f"AND state != 'rejected' AND NOT ({_WHOLE}) GROUP BY 1, 2",
            some,
        )
        for image, accepted, count in counted:
            marks[image, bool(accepted)] = count
    return tuple(
        ProjectImage(
            index=row["id"],
            uri=row["uri"],
            state=row["state"],
            held_out=bool(row["held_out"]),
            labels=tuple(whole[row["id"]]),
            num_marks=marks[row["id"], True],
            num_undecided=marks[row["id"], False],
            revision=row["revision"],
        )
        for row in rows
    )


def _portions(values: Sequence[_Value]) -> Iterable[Sequence[_Value]]:
    return [values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE)]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
