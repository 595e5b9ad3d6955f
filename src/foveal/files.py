"""Files and folders that are whole or absent: the one way in which artefacts reach the disk."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file under a temporary name beside it, sync it and rename it: a reader sees the old or the new.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    staging = path.with_name(f".{path.name}.tmp")
    try:
        staging.write_bytes(data.encode() if isinstance(data, str) else data)
        sync(staging)
        staging.replace(path)
    except OSError:
        with suppress(OSError):
            staging.unlink()
        raise


def publish(staging: Path, folder: Path) -> None:
    """Move a finished folder into place, over an earlier one, with everything in it synced to the disk first.

    A process killed at any moment leaves the old folder, the new one, or (between two renames) the old one under a
    hidden name; never a part of one.

    Raises:
        OSError: something cannot be synced or renamed.
    """
    for path in (*sorted(staging.iterdir()), staging):
        sync(path)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
