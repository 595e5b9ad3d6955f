"""Known checkpoints and other files in a folder on this machine: fetched once, whole, verified, usable offline.

- `FOVEAL_HOME`: the cache folder; else `$XDG_CACHE_HOME/foveal`, else `~/.cache/foveal`.
- `FOVEAL_MIRROR`: where known checkpoints are fetched instead, and nowhere else: `https://...`, `http://...` or
  `file:///...`, a flat folder of files under their own names, as `foveal download --to` makes one.
- `FOVEAL_OFFLINE`: 1 forbids the network; what is in the cache, or on a `file:///` mirror, still works.
- `HTTPS_PROXY`, `NO_PROXY`: as everywhere.

Beside each file that was fetched lies `NAME.json`: its url, length and sha256. Where no hash is known, that of the
first download is pinned there, and a later download of another file under that name is refused. Outside the cache, a
file without one is somebody's own and is never replaced.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from foveal.backbone.hub import checkpoint
from foveal.backbone.partial import Partial, no_room
from foveal.backbone.transfer import Patience, Progress, Wanted, fetch
from foveal.errors import DownloadError
from foveal.files import cache_folder, sha256_of, sync, write_atomically

logger = logging.getLogger(__name__)

Verified = Literal["publisher", "independent", "pinned", "nobody"]

SAID = {
    "publisher": "sha256 as its publisher states it",
    "independent": "sha256 as independent projects recorded it; its publisher states none",
    "pinned": "unverified: no sha256 is published; pinned at first download",
    "nobody": "unverified: no sha256 is published, and it was put there by hand",
}


@dataclass(frozen=True)
class CachedFile:
    """A whole file on this machine. `verified` says who vouches for its sha256; see `SAID`."""

    path: Path
    url: str
    sha256: str
    size_bytes: int
    verified: Verified


@dataclass(frozen=True)
class _Record:
    """What lies beside a file as JSON: with equal length and time, the file need not be hashed again."""

    url: str
    sha256: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class _Target:
    """A file as it is known before it is here."""

    title: str
    file_name: str
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    verified: Verified = "pinned"
    mirrored: bool = False


def download(
    name_or_url: str,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    patience: Patience = Patience(),  # noqa: B008 (frozen)
) -> CachedFile:
    """Return a known checkpoint, or the file at a url, fetching it if it is not here yet.

    Args:
        name_or_url: a name in `foveal models`, or https://...
        folder: where to keep it; None is the cache.
        progress: called with (bytes so far, bytes in all or None).
        patience: timeouts and attempts.

    Raises:
        DownloadError: an unknown name, a file that its owner gives out only on request, no network, another file than
            the known or pinned one, a file in `folder` that was not fetched and is not the known one, or a folder that
            cannot be written; the message says which.
    """
    target, folder = _target(name_or_url), Path(folder) if folder is not None else checkpoints_folder()
    path = folder / target.file_name
    if found := _intact(path, target):
        return found
    _check_replaceable(path, target)
    source, plain_http = _source(target, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock"), patience.lock_s):
            if found := _intact(path, target):  # another process was faster
                return found
            _check_replaceable(path, target)
            if path.exists():
                logger.warning("%s is damaged: its sha256 is not the known one; fetching it again", path)
            partial = Partial(path.with_name(f".{path.name}.partial"), url=source)
            wanted = Wanted(
                source, size_bytes=target.size_bytes, sha256=_known_hash(path, target), plain_http=plain_http
            )
            logger.info("fetching %s from %s", target.title, source)
            fetch(wanted, partial, patience=patience, progress=progress)
            # The record comes first: a file without one counts as somebody's own.
            found = _recorded(path, target, fetched=partial.path)
            partial.publish(path)
            sync(folder)
            return found
    except OSError as error:
        raise no_room(folder, target.size_bytes or 0, error) from error


def cached(name_or_url: str) -> CachedFile | None:
    """Return the file if it is in the cache and whole; never uses the network.

    Raises:
        DownloadError: an unknown name, or one that only its owner gives out.
    """
    target = _target(name_or_url)
    return _intact(checkpoints_folder() / target.file_name, target)


def checkpoints_folder() -> Path:
    """Return the folder that downloads are kept in; it need not exist."""
    return cache_folder() / "checkpoints"


def _target(name_or_url: str) -> _Target:
    if "://" in name_or_url:
        # Files of different servers may have one name: the url is part of the name here.
        parts = urllib.parse.urlsplit(name_or_url)
        digest = hashlib.sha256(name_or_url.encode()).hexdigest()[:12]
        return _Target(name_or_url, f"{digest}-{Path(parts.path).name or 'file'}", name_or_url)
    row = checkpoint(name_or_url)
    if row.url is None or row.file_name is None:
        raise DownloadError(
            f"{row.name} is given out by its owner only to those who accept its terms ({row.licence.name}, "
            f"{row.licence.url}); ask for it at {row.source}"
        )
    return _Target(
        row.name, row.file_name, row.url, row.size_bytes, row.sha256, row.hash_source or "pinned", mirrored=True
    )


def _source(target: _Target, path: Path) -> tuple[str, bool]:
    """Return the url to fetch from, and whether plain http is allowed to it."""
    here = checkpoints_folder() / target.file_name
    in_cache = _intact(here, target) if here != path else None
    if in_cache and in_cache.verified != "nobody":
        return here.absolute().as_uri(), False
    url, plain_http = target.url, False
    if target.mirrored and (mirror := os.environ.get("FOVEAL_MIRROR")):
        if not mirror.startswith(("https://", "http://", "file:///")):
            raise DownloadError(
                f"FOVEAL_MIRROR={mirror} is not an address; give https://..., http://... or file:///..."
            )
        url, plain_http = f"{mirror.rstrip('/')}/{target.file_name}", True
    if os.environ.get("FOVEAL_OFFLINE", "0") not in ("", "0") and not url.startswith("file:"):
        raise DownloadError(
            f"{target.title} is not, whole, in {path.parent} and FOVEAL_OFFLINE forbids the network; put "
            f"{target.file_name} there, or unset FOVEAL_OFFLINE"
        )
    return url, plain_http


def _known_hash(path: Path, target: _Target) -> str | None:
    if target.sha256:
        return target.sha256
    record = _record(path)
    return record.sha256 if record else None


def _intact(path: Path, target: _Target) -> CachedFile | None:
    """Return the file at `path` if it is there and the one that is known, else None."""
    try:
        status = path.stat()
    except OSError:
        return None
    known, record = _known_hash(path, target), _record(path)
    if record and (record.size_bytes, record.mtime_ns, record.sha256) == (status.st_size, status.st_mtime_ns, known):
        return CachedFile(path, target.url, record.sha256, record.size_bytes, target.verified)
    if known is None:
        return _put_by_hand(path, target)
    return _recorded(path, target, fetched=path, sha256=known) if sha256_of(path) == known else None


def _put_by_hand(path: Path, target: _Target) -> CachedFile | None:
    """Return a file of unknown hash that was not fetched: used in the cache, as it is, and pinned nowhere."""
    if not _is_in_cache(path):
        return None
    return CachedFile(path, target.url, sha256_of(path), path.stat().st_size, "nobody")


def _is_in_cache(path: Path) -> bool:
    return path.parent.resolve() == checkpoints_folder().resolve()


def _check_replaceable(path: Path, target: _Target) -> None:
    """Raise DownloadError where a file lies at `path` that no download put there."""
    if not path.exists() or _is_in_cache(path) or _record(path):
        return
    why = f"its sha256 is {sha256_of(path)}, not {target.sha256}" if target.sha256 else "no sha256 of it is published"
    raise DownloadError(
        f"{path} is not known to be {target.title} ({why}), and no download put it there (it has no "
        f"{_record_path(path).name} beside it), so it is not replaced; move it away, or choose another folder"
    )


def _recorded(path: Path, target: _Target, *, fetched: Path, sha256: str | None = None) -> CachedFile:
    """Write down what the file at `path` is, or is about to be, which pins its hash, and return it."""
    status = fetched.stat()
    record = _Record(target.url, sha256 or sha256_of(fetched), status.st_size, status.st_mtime_ns)
    try:
        write_atomically(_record_path(path), json.dumps(asdict(record), indent=2) + "\n")
    except OSError as error:
        if target.sha256 is None:
            raise no_room(path.parent, 0, error) from error
        logger.info("%s cannot be written (%s), so the file is hashed each time", _record_path(path), error)
    return CachedFile(path, target.url, record.sha256, record.size_bytes, target.verified)


def _record(path: Path) -> _Record | None:
    record = _record_path(path)
    try:
        return _Record(**json.loads(record.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DownloadError(
            f"{record} cannot be understood ({error}); remove it and the file to fetch both anew"
        ) from error


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


@contextmanager
def _locked(path: Path, limit_s: float) -> Iterator[None]:
    """Hold the lock file at `path`, waiting for another process that does."""
    end, told = time.monotonic() + limit_s, False
    while True:
        file = open(path, "w")  # noqa: SIM115 (held as long as the lock)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file.fileno()):  # not removed by whoever held it before
                break
        except BlockingIOError:
            if time.monotonic() > end:
                file.close()
                raise DownloadError(f"another process has held {path} for {limit_s:.0f} s; end it, or wait") from None
            if not told:
                logger.info("another process is fetching %s; waiting for it", path.name[1:].removesuffix(".lock"))
            told = True
            time.sleep(min(0.2, limit_s))
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
