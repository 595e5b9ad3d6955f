"""The SQLite file of an annotation project: opened, checked, and its failures in words."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foveal.errors import ProjectError, UnwritableProjectError

APPLICATION_ID = 0x666F7661  # in the header of the file: it is a project of foveal
FORMAT_VERSION = 1
BUSY_S = 30.0  # how long a write waits for another one

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE images (
    id INTEGER PRIMARY KEY,         -- row of the image set
    uri TEXT NOT NULL UNIQUE,
    held_out INTEGER NOT NULL,      -- its labels measure and do not teach
    width INTEGER, height INTEGER,  -- null until they were needed
    state TEXT NOT NULL DEFAULT 'open',
    revision INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX images_by_state ON images (state);

CREATE TABLE classes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    colour TEXT NOT NULL,
    revision INTEGER NOT NULL
);
CREATE TABLE earlier_names (name TEXT PRIMARY KEY, class INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE annotations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice
    image INTEGER NOT NULL REFERENCES images,
    class INTEGER NOT NULL REFERENCES classes,
    height INTEGER, width INTEGER, counts TEXT,
    box TEXT,
    state TEXT NOT NULL,
    source TEXT NOT NULL,
    score REAL,
    track TEXT,
    prompts TEXT NOT NULL,
    revision INTEGER NOT NULL              -- of the step that wrote it: with the id it names this content
);
CREATE INDEX annotations_by_image ON annotations (image);
CREATE INDEX annotations_by_class ON annotations (class, state, image);
CREATE INDEX annotations_by_state ON annotations (state, image);
CREATE INDEX annotations_by_track ON annotations (track, image) WHERE track IS NOT NULL;

CREATE TABLE steps (
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    client TEXT NOT NULL,
    kind TEXT NOT NULL,     -- do, undo, redo
    of INTEGER,             -- the step that is undone or done again
    words TEXT NOT NULL,
    request TEXT UNIQUE,    -- sent twice, done once
    time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
CREATE INDEX steps_by_client ON steps (client, revision);
CREATE INDEX steps_of ON steps (of, revision) WHERE of IS NOT NULL;

CREATE TABLE changes (
    revision INTEGER NOT NULL,
    place TEXT NOT NULL,    -- the table
    row INTEGER NOT NULL,
    before TEXT,            -- the row as it was, null where it was not there
    after INTEGER,          -- revision that the row has since, null where it is gone
    PRIMARY KEY (revision, place, row)
) WITHOUT ROWID;

CREATE TABLE conflicts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    revision INTEGER NOT NULL,   -- of the step that met it
    client TEXT NOT NULL,
    annotation INTEGER,          -- what both wrote
    wanted TEXT                  -- what was not written, null where it was to be removed
);
"""

_WORDS = {
    sqlite3.SQLITE_BUSY: f"another process has been writing for {BUSY_S:.0f} s; wait for it and try again",
    sqlite3.SQLITE_LOCKED: "another process is changing its structure; wait for it and try again",
    sqlite3.SQLITE_READONLY: "it is read-only; give write permission, or copy the folder to where you may write",
    sqlite3.SQLITE_PERM: "permission is denied; give write permission, or copy the folder to where you may write",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened for writing; check that it exists and the permissions of its folder",
    sqlite3.SQLITE_FULL: "the disk is full; free space and try again: this change is not kept, all before it are",
    sqlite3.SQLITE_IOERR: "the disk refuses ({error}); free space or repair it and try again: this change is not kept, "
    "all before it are",
    sqlite3.SQLITE_CORRUPT: "it is damaged ({error}); restore it from a copy",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database; give the folder of a project",
}

_PASSING = {  # a person can mend these while the program runs
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
}


class Database:
    """A project's file, with one connection for each thread; readers and a writer do not wait for each other."""

    def __init__(self, path: Path) -> None:
        """Open a file that is there.

        Raises:
            ProjectError: it is none of a project, or of a newer foveal, damaged, or cannot be written.
        """
        self.path = path
        self._of_thread = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._closed = False
        if not (
            os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        ):  # better said now than at the first change
            raise ProjectError(f"{path}: {_WORDS[sqlite3.SQLITE_READONLY]}")
        try:
            with self.reading() as connection:
                _check_format(path, connection)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path) -> "Database":
        """Make a new file with empty tables."""
        with _in_words(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(
                    f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION};"
                    f"{_SCHEMA} COMMIT;"
                )
            finally:
                connection.close()
        return cls(path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that sees one state of everything, whatever others write meanwhile."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection whose changes are durable together once the block ends, or not made at all."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with _in_words(self.path):
            connection = self._connection()
            if connection.in_transaction:  # within a block of this thread
                yield connection
                return
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise ProjectError(f"{self.path.parent} is closed; open it again")
        found: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if found is None:
            found = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,  # each thread has its own; any may close them
            )
            self._connections.append(found)
            found.row_factory = sqlite3.Row
            found.execute("PRAGMA foreign_keys = ON")
            found.execute("PRAGMA synchronous = FULL")  # what was said to be kept survives a power cut
            self._of_thread.connection = found
        return found

    def close(self) -> None:
        """Close the connections of all threads."""
        self._closed = True
        while self._connections:
            self._connections.pop().close()


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise ProjectError(f"{path} is an SQLite database, and not of an annotation project; give a project's folder")
    if version != FORMAT_VERSION:
        raise ProjectError(
            f"{path} has the format {version}, and this foveal reads {FORMAT_VERSION}; open it with the foveal that "
            "wrote it, or a newer one"
        )


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        words = _WORDS.get(primary, "SQLite says: {error}; nothing of this change is kept, all before it is")
        kind = UnwritableProjectError if primary in _PASSING else ProjectError
        raise kind(f"{path}: {words.format(error=error)}") from error
