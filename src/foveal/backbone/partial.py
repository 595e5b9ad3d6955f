"""A file that is arriving: how much of it is on the disk for certain, and of which remote file it is a part."""

import errno
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from foveal.errors import DownloadError
from foveal.files import write_atomically


@dataclass(frozen=True)
class Note:
    """What is known of a partial file; kept in a JSON file beside it.

    Attributes:
        url: where it comes from.
        certain_bytes: synced to the disk. What follows them may be anything after a power cut, and is cut off.
        validator: the server's strong ETag, or else its date, to ask for the rest of the same file only.
        total_bytes: the length that the server gave for the whole file.
    """

    url: str
    certain_bytes: int = 0
    validator: str | None = None
    total_bytes: int | None = None


class Partial:
    """The partial file at `path` of the file at `url`; what is there of another url is not used.

    Raises:
        DownloadError: from every method that writes, when there is no room or no permission.
    """

    def __init__(self, path: Path, *, url: str) -> None:
        self.path, self.url = path, url
        self.note = self._read_note()

    @property
    def title(self) -> str:
        """The name of the file that it becomes."""
        return self.path.name.strip(".").removesuffix(".partial")

    def start_anew(self, *, validator: str | None = None, total_bytes: int | None = None) -> None:
        """Forget what is there and begin with an empty file."""
        self.discard()
        self.note = Note(self.url, validator=validator, total_bytes=total_bytes)
        try:
            self.path.touch()
            self._write_note(self.note)
        except OSError as error:
            raise no_room(self.path.parent, total_bytes or 0, error) from error

    def open(self) -> BinaryIO:
        """Open the file for writing after its certain bytes."""
        file = open(self.path, "r+b")  # noqa: SIM115 (the caller closes it)
        file.truncate(self.note.certain_bytes)
        file.seek(self.note.certain_bytes)
        return file

    def make_certain(self, file: BinaryIO) -> None:
        """Sync what was written so far and note its length."""
        file.flush()
        os.fsync(file.fileno())
        self._write_note(replace(self.note, certain_bytes=file.tell()))

    def discard(self) -> None:
        """Remove the file and its note."""
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)
        self.note = Note(self.url)

    def publish(self, path: Path) -> None:
        """Move the finished file to `path`."""
        self.path.replace(path)
        self._note_path.unlink(missing_ok=True)

    @property
    def _note_path(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def _write_note(self, note: Note) -> None:
        self.note = note
        write_atomically(self._note_path, json.dumps(asdict(note)))

    def _read_note(self) -> Note:
        with suppress(OSError, ValueError, TypeError):
            note = Note(**json.loads(self._note_path.read_text()))
            if note.url == self.url and self.path.stat().st_size >= note.certain_bytes:
                return note
        return Note(self.url)


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raise DownloadError when fewer than `needed_bytes` are free."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise no_room(folder, needed_bytes, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def no_room(folder: Path, needed_bytes: int, error: OSError) -> DownloadError:
    """Return the error of a folder that cannot be written, with the bytes needed and free."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    return DownloadError(
        f"{folder} cannot be written ({error.strerror or error}): {needed_bytes} bytes are needed, {free} are free; "
        "free space, or choose another folder (FOVEAL_HOME is the cache)"
    )
