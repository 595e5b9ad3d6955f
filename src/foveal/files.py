"""Files and folders that are whole or absent: the one way in which artefacts reach the disk."""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, data: str | bytes, *, staging: Path | None = None) -> None:
    """Write a file under a temporary name beside it, sync it and rename it: a reader sees the old or the new.

    Args:
        path: the file.
        data: its contents.
        staging: the temporary name; `staging_of(path)` where several processes may write the same file.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    staging = staging or path.with_name(f".{path.name}.tmp")
    try:
        staging.write_bytes(data.encode() if isinstance(data, str) else data)
        sync(staging)
        staging.replace(path)
    finally:  # also when a signal ends the process; after the rename there is nothing to remove
        with suppress(OSError):
            staging.unlink()


def write_new(path: Path, data: str) -> bool:
    """Write a file that no other process has written yet; which of several wins is moot, and its file stays.

    Returns:
        False when the file was there first.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    staging = staging_of(path)
    try:
        staging.write_text(data)
        sync(staging)
        os.link(staging, path)  # unlike a rename, refused where the name is taken
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # a file system without links
            raise
        try:
            with path.open("x") as file:
                file.write(data)
        except FileExistsError:
            return False
    finally:
        with suppress(OSError):
            staging.unlink()
    sync(path.parent)
    return True


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside another one to write into; removed at the end, unless it was published.

    Raises:
        OSError: it cannot be made.
    """
    staging = staging_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, folder: Path) -> None:
    """Move a finished folder into place, over an earlier one, with everything in it synced to the disk first.

    A process killed at any moment leaves the old folder, the new one, or (between two renames) the old one under a
    hidden name; never a part of one.

    Raises:
        OSError: something cannot be synced or renamed.
    """
    _sync_all(staging)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def publish_new(staging: Path, folder: Path) -> bool:
    """Move a finished folder into place, synced, unless one is there already; which of several processes wins is moot.

    Returns:
        False when `folder` was there first; then `staging` is removed.

    Raises:
        OSError: something cannot be synced or renamed.
    """
    _sync_all(staging)
    try:
        staging.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(staging, ignore_errors=True)
        return False
    sync(folder.parent)
    return True


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block with this folder: for files that are read, changed and written back.

    Raises:
        OSError: the lock file, `.lock`, cannot be written, or the file system knows no locks.
    """
    with open(folder / ".lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # released when the file is closed, also by the end of the process
        yield


def staging_of(path: Path) -> Path:
    """Return a hidden name beside a path that belongs to this process alone, on whichever machine of a shared disk."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine left in a folder under `staging_of` names when they were killed."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdecimal() and int(pid) != os.getpid() and not _is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    for path in (*sorted(folder.rglob("*")), folder):
        sync(path)


def cache_folder() -> Path:
    """Return the folder for what can be downloaded or computed again; it need not exist.

    FOVEAL_HOME, else foveal/ below XDG_CACHE_HOME, else ~/.cache/foveal.
    """
    if home := os.environ.get("FOVEAL_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foveal"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
