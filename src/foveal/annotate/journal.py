"""Steps: every change of a project is one, has a revision, and is written down with what was there before.

The log is only ever added to. A row's revision is that of the step that wrote it so; undo and redo put it back with its
row, so that a revision and an id always name the same content.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from foveal.annotate.database import Database

# What steps may change. Rows are written down as their values in this order, with the revision behind.
COLUMNS = {
    "classes": ("name", "colour"),
    "images": ("state",),
    "annotations": (
        *("image", "class", "height", "width", "counts", "box", "state", "source", "score", "track", "prompts"),
    ),
}

_NOT_UNDONE = "(SELECT kind FROM steps AS later WHERE later.of = steps.revision ORDER BY later.revision DESC LIMIT 1)"


class Step:
    """The changes of one revision, inside its transaction."""

    def __init__(self, connection: sqlite3.Connection, revision: int) -> None:
        self.connection, self.revision = connection, revision
        self.kept = False  # until it is durable

    def add(self, place: str, **values: Any) -> int:
        """Add a row; return its id."""
        names = COLUMNS[place]
        cursor = self.connection.execute(
            f"INSERT INTO {place} ({', '.join(names)}, revision) VALUES ({', '.join('?' * (len(names) + 1))})",
            (*(values[name] for name in names), self.revision),
        )
        assert cursor.lastrowid is not None
        self._note(place, cursor.lastrowid, None, self.revision)
        return cursor.lastrowid

    def change(self, place: str, row: int, **values: Any) -> None:
        """Give a row that is there other values."""
        before = self._row(place, row)
        assignments = ", ".join(f"{name} = ?" for name in values)
        self.connection.execute(
            f"UPDATE {place} SET {assignments}, revision = ? WHERE id = ?", (*values.values(), self.revision, row)
        )
        self._note(place, row, before, self.revision)

    def remove(self, place: str, row: int) -> None:
        """Take a row away."""
        before = self._row(place, row)
        self.connection.execute(f"DELETE FROM {place} WHERE id = ?", (row,))
        self._note(place, row, before, None)

    def take_back(self, revision: int) -> int:
        """Put everything back as it was before a step, but what was changed after it.

        Returns:
            How many rows stay as they are, since others changed them or need them.
        """
        num_left = 0
        found = self.connection.execute("SELECT * FROM changes WHERE revision = ?", (revision,)).fetchall()
        for change in sorted(found, key=_order):
            present = self._row(change["place"], change["row"])
            if (present[-1] if present else None) != change["after"]:
                num_left += 1
                continue
            self.connection.execute("SAVEPOINT one")
            try:
                self._put(change["place"], change["row"], present, change["before"])
            except sqlite3.IntegrityError:  # a class that others use by now, or a name that is taken
                self.connection.execute("ROLLBACK TO one")
                num_left += 1
            self.connection.execute("RELEASE one")
        return num_left

    def _put(self, place: str, row: int, present: list[Any] | None, before: str | None) -> None:
        values = json.loads(before) if before is not None else None
        names = (*COLUMNS[place], "revision")
        if values is None:
            self.connection.execute(f"DELETE FROM {place} WHERE id = ?", (row,))
        elif present is None:
            self.connection.execute(
                f"INSERT INTO {place} (id, {', '.join(names)}) VALUES (?{', ?' * len(names)})", (row, *values)
            )
        else:
            self.connection.execute(
                f"UPDATE {place} SET {', '.join(f'{name} = ?' for name in names)} WHERE id = ?", (*values, row)
            )
        self._note(place, row, present, values[-1] if values else None)

    def _row(self, place: str, row: int) -> list[Any] | None:
        found = self.connection.execute(
            f"SELECT {', '.join(COLUMNS[place])}, revision FROM {place} WHERE id = ?", (row,)
        ).fetchone()
        return list(found) if found else None

    def _note(self, place: str, row: int, before: list[Any] | None, after: int | None) -> None:
        """Write down a change; of several of one row in one step, what was before the first and after the last."""
        self.connection.execute(
            "INSERT INTO changes VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET after = excluded.after",
            (self.revision, place, row, None if before is None else json.dumps(before), after),
        )


class Repeated(Exception):
    """A request that was done already, by the step of a revision."""

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


class _Nothing(Exception):
    """A step that changed nothing, and is not kept."""


@contextmanager
def step(
    database: Database, *, client: str, words: str, request: str | None = None, kind: str = "do", of: int | None = None
) -> Iterator[Step]:
    """Open a step; what it changes is durable once the block ends. One without changes leaves no trace.

    Args:
        database: the project's.
        client: who does it; undo and redo go through the steps of one client.
        words: what is done, for "undo ...".
        request: a name that the client gives, so that what is sent twice is done once.
        kind: "do", "undo" or "redo".
        of: the step that is undone or done again.

    Raises:
        Repeated: the request was done already; nothing is changed.
    """
    with suppress(_Nothing):  # it has undone the transaction, and that is all it is for
        with database.writing() as connection:
            if (done := step_of_request(connection, request)) is not None:
                raise Repeated(done)
            cursor = connection.execute(
                "INSERT INTO steps (client, kind, of, words, request) VALUES (?, ?, ?, ?, ?)",
                (client, kind, of, words, request),
            )
            assert cursor.lastrowid is not None
            opened = Step(connection, cursor.lastrowid)
            yield opened
            if kind == "do" and not _left_a_trace(connection, opened.revision):
                raise _Nothing
        opened.kept = True


def _left_a_trace(connection: sqlite3.Connection, revision: int) -> bool:
    return any(
        connection.execute(f"SELECT 1 FROM {table} WHERE revision = ? LIMIT 1", (revision,)).fetchone()
        for table in ("changes", "conflicts")
    )


class Target(NamedTuple):
    """A step that can be undone or done again: the revision to take back, that of the change itself, its words."""

    revision: int
    of: int
    words: str


def undo_target(connection: sqlite3.Connection, client: str) -> Target | None:
    """Return the last step of a client that is not undone."""
    row = connection.execute(
        f"SELECT revision, words FROM steps WHERE client = ? AND kind = 'do' AND {_NOT_UNDONE} IS NOT 'undo' "
        "ORDER BY revision DESC LIMIT 1",
        (client,),
    ).fetchone()
    return Target(row["revision"], row["revision"], row["words"]) if row else None


def redo_target(connection: sqlite3.Connection, client: str) -> Target | None:
    """Return the last step that a client has undone and neither done again nor followed by another."""
    row = connection.execute(
        "SELECT revision, of, words FROM steps WHERE client = ? AND kind = 'undo' "
        "AND NOT EXISTS (SELECT 1 FROM steps AS later WHERE later.of = steps.of AND later.revision > steps.revision) "
        "AND revision > (SELECT coalesce(max(revision), 0) FROM steps WHERE client = ? AND kind = 'do') "
        "ORDER BY revision DESC LIMIT 1",
        (client, client),
    ).fetchone()
    return Target(row["revision"], row["of"], row["words"]) if row else None


def newest_revision(connection: sqlite3.Connection) -> int:
    """Return the revision of the last step, 0 before the first."""
    found: int = connection.execute("SELECT coalesce(max(revision), 0) FROM steps").fetchone()[0]
    return found


def step_of_request(connection: sqlite3.Connection, request: str | None) -> int | None:
    """Return the revision of the step that a request has made already."""
    found = connection.execute("SELECT revision FROM steps WHERE request = ?", (request,)).fetchone()
    return found[0] if found else None


def _order(change: sqlite3.Row) -> tuple[int, int]:
    """Put back classes before annotations, and take them away after."""
    gone = change["before"] is None
    return (3 if gone else 0) if change["place"] == "classes" else (2 if gone else 1), change["row"]
