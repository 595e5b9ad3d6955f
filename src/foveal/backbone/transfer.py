"""Fetch one file over HTTP, or from a folder, until it is whole and what was expected.

Every way in which a server can fail ends in one of two errors: one that is tried again, or one that is told. What
arrived of the right file is kept and continued (Range with If-Range), also by another process later.
"""

import http.client
import importlib.metadata
import logging
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from foveal.backbone.partial import Partial, check_room, no_room
from foveal.errors import DownloadError
from foveal.files import sha256_of

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]

BLOCK_BYTES = 1 << 18
# An attempt that came so much further than any before starts the count of failures anew: a large file gets through
# over a bad line, and a server that makes us begin again and again is given up.
PROGRESS_BYTES = 16 << 20
LONGEST_PAUSE_S = 60.0
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
TRIED_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server, or with another process.

    Attributes:
        timeout_s: for a connection, and for any byte to arrive.
        stall_s: a line that brings fewer than `stall_bytes` in this time is given up and tried again.
        stall_bytes: see there.
        attempts: failures in a row before giving up.
        backoff_s: pause after the first failure; doubled after each further one.
        sync_s: between two moments at which what has arrived is made certain on the disk.
        lock_s: wait for another process that is fetching the same file.
    """

    timeout_s: float = 30.0
    stall_s: float = 60.0
    stall_bytes: int = 64 << 10
    attempts: int = 6
    backoff_s: float = 1.0
    sync_s: float = 2.0
    lock_s: float = 3600.0


@dataclass(frozen=True)
class Wanted:
    """A file to fetch and what is known of it beforehand.

    Attributes:
        url: https, file, or http where allowed.
        size_bytes: its length, or None.
        sha256: its hash, or None.
        plain_http: allow http to any host; else only to this machine.
    """

    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    plain_http: bool = False


class _Failure(Exception):
    """An attempt that failed and is repeated, after `pause_s` if the server asked for a pause."""

    def __init__(self, message: str, *, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def fetch(wanted: Wanted, partial: Partial, *, patience: Patience, progress: Progress | None = None) -> str:
    """Fill `partial` with the wanted file, continuing what is there, and return its sha256.

    Args:
        wanted: the file.
        partial: where; of the same url.
        patience: timeouts and attempts.
        progress: called with (bytes so far, bytes in all or None).

    Raises:
        DownloadError: not reachable, not the expected file, or no room.
    """
    if wanted.url.startswith("file:"):
        _copy(wanted, partial, progress)
        return _checked_hash(wanted, partial)
    _check_scheme(wanted.url, plain_http=wanted.plain_http)
    line = _Line(wanted, partial, patience)
    continued = line.until_whole(progress)
    try:
        return _checked_hash(wanted, partial)
    except DownloadError:
        if not continued:
            raise
    logger.warning("%s: what was left of an earlier download is of another file; starting anew", partial.title)
    line.until_whole(progress)
    return _checked_hash(wanted, partial)


class _Line:
    """One wanted file, one server, and the partial file between them."""

    def __init__(self, wanted: Wanted, partial: Partial, patience: Patience) -> None:
        self.wanted, self.partial, self.patience = wanted, partial, patience
        self.opener = urllib.request.build_opener(_SafeRedirects(wanted.plain_http))

    def until_whole(self, progress: Progress | None) -> bool:
        """Try until the file is whole; return whether the last attempt continued an earlier one."""
        failures, most = 0, self.partial.note.certain_bytes
        while True:
            try:
                return self._attempt(progress)
            except _Failure as failure:
                kept = self.partial.note.certain_bytes
                failures = 1 if kept - most >= PROGRESS_BYTES else failures + 1
                most = max(most, kept)
                if failures >= self.patience.attempts:
                    again = (
                        f"{kept} bytes are kept, run again to continue"
                        if kept
                        else "try again later, through HTTPS_PROXY or from a FOVEAL_MIRROR"
                    )
                    raise DownloadError(
                        f"{self.wanted.url}: {failure}; gave up after {failures} failures in a row; {again}"
                    ) from failure
                pause = self.patience.backoff_s * 2 ** (failures - 1) if failure.pause_s is None else failure.pause_s
                pause = min(pause, LONGEST_PAUSE_S)
                logger.warning("%s: %s; trying again in %.1f s", self.partial.title, failure, pause)
                time.sleep(pause)

    def _attempt(self, progress: Progress | None) -> bool:
        """Make one request and write what comes; return whether it continued a partial file."""
        note = self.partial.note
        # Without a validator or a hash nobody could tell a patchwork of two files from one.
        offset = note.certain_bytes if note.validator or self.wanted.sha256 else 0
        try:
            response = self.opener.open(self._request(offset), timeout=self.patience.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and offset:
                    return self._nothing_left(error, offset)
                self._refused(error)
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise DownloadError(f"{self.wanted.url}: its certificate is not trusted: {error.reason}") from error
            raise _Failure(f"cannot connect ({error.reason})") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Failure(f"no answer ({error!r})") from error
        with response:
            total = self._expect(response, offset)
            offset = self.partial.note.certain_bytes
            self._receive(response, total, progress)
        return offset > 0

    def _request(self, offset: int) -> urllib.request.Request:
        headers = {"User-Agent": f"foveal/{importlib.metadata.version('foveal')}", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self.partial.note.validator:
                headers["If-Range"] = self.partial.note.validator
        return urllib.request.Request(self.wanted.url, headers=headers)

    def _nothing_left(self, error: urllib.error.HTTPError, offset: int) -> bool:
        """Answer to 416: everything is here when the whole file is as long as what is here."""
        length = (error.headers.get("Content-Range") or "").removeprefix("bytes */")
        if length == str(offset) and self.partial.note.total_bytes in (None, offset):
            self.partial.open().close()  # cuts off what is not certain
            return True
        self.partial.discard()
        raise _Failure("the server's file is no longer as long as the one that was begun")

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        answer = f"the server answered {error.code} {error.reason}"
        if error.code in TRIED_AGAIN:
            pause = error.headers.get("Retry-After", "")
            raise _Failure(answer, pause_s=float(pause) if pause.isdecimal() else None)
        raise DownloadError(f"{self.wanted.url}: {answer}; check the name, or the mirror if one is set")

    def _expect(self, response: http.client.HTTPResponse, offset: int) -> int | None:
        """Check the headers, start the partial file anew unless it goes on, and return the length of the whole file."""
        headers, note, known = response.headers, self.partial.note, self.wanted.size_bytes
        if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
            raise DownloadError(f"{self.wanted.url}: the server sends it as {encoding}, which was not asked for")
        etag = headers.get("ETag", "")
        strong = etag.startswith('"')
        if response.status == 206 and offset:
            start, total = _content_range(headers.get("Content-Range", ""))
            changed = strong and (note.validator or "").startswith('"') and etag != note.validator
            changed = changed or (total is not None and note.total_bytes not in (None, total))
            if start != offset or changed:
                self.partial.discard()
                raise _Failure("the server's file changed since the download was begun")
        elif response.status == 200:
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            self.partial.start_anew(validator=etag if strong else headers.get("Last-Modified"), total_bytes=total)
        else:
            raise DownloadError(f"{self.wanted.url}: the server answered {response.status}, which brings no file")
        if total is not None and known is not None and total != known:
            self.partial.discard()
            raise DownloadError(
                f"{self.wanted.url} has {total} bytes, the file that is known has {known}: another file"
            )
        if total is None and known is None and self.wanted.sha256 is None:
            raise DownloadError(
                f"{self.wanted.url}: the server does not say how long the file is and no sha256 is known, so it could "
                "not be told whether all of it arrived; fetch it by other means and give its path"
            )
        return known if total is None else total

    def _receive(self, response: http.client.HTTPResponse, total: int | None, progress: Progress | None) -> None:
        folder = self.partial.path.parent
        done = self.partial.note.certain_bytes
        check_room(folder, (total or 0) - done)
        try:
            with self.partial.open() as file:
                try:
                    pace = _Pace(self.patience, done)
                    while block := _read(response):
                        file.write(block)
                        done += len(block)
                        if total is not None and done > total:
                            break
                        if progress:
                            progress(done, total)
                        if pace.is_sync_due():
                            self.partial.make_certain(file)
                        pace.check(done)
                finally:
                    self.partial.make_certain(file)
        except OSError as error:
            raise no_room(folder, max(0, (total or 0) - done), error) from error
        if total is not None and done > total:
            self.partial.discard()
            raise DownloadError(f"{self.wanted.url} has more than the {total} bytes expected: another file")
        if total is not None and done < total:
            raise _Failure(f"the connection closed after {done} of {total} bytes")


class _Pace:
    """Tells when to sync, and when a line is too slow."""

    def __init__(self, patience: Patience, done: int) -> None:
        self.patience = patience
        self.synced = self.since = time.monotonic()
        self.at = done

    def is_sync_due(self) -> bool:
        now = time.monotonic()
        if now - self.synced < self.patience.sync_s:
            return False
        self.synced = now
        return True

    def check(self, done: int) -> None:
        now = time.monotonic()
        if now - self.since < self.patience.stall_s:
            return
        if done - self.at < self.patience.stall_bytes:
            raise _Failure(f"too slow: {done - self.at} bytes in {now - self.since:.1f} s")
        self.since, self.at = now, done


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not to plain http where that was not allowed."""

    def __init__(self, plain_http: bool) -> None:
        self.plain_http = plain_http

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_scheme(newurl, plain_http=self.plain_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return what has arrived, b"" at the end; read1, since read would wait for a whole block of a slow server."""
    try:
        return response.read1(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Failure(f"the connection broke ({error!r})") from error


def _copy(wanted: Wanted, partial: Partial, progress: Progress | None) -> None:
    source = Path(urllib.request.url2pathname(urllib.parse.urlsplit(wanted.url).path))
    if not source.is_file():
        raise DownloadError(f"{source} does not exist; put the file there, or name another mirror")
    total = source.stat().st_size
    check_room(partial.path.parent, total)
    partial.start_anew(total_bytes=total)
    try:
        with open(source, "rb") as reader, partial.open() as writer:
            while block := reader.read(BLOCK_BYTES):
                writer.write(block)
                if progress:
                    progress(writer.tell(), total)
            partial.make_certain(writer)
    except OSError as error:
        raise no_room(partial.path.parent, total, error) from error


def _checked_hash(wanted: Wanted, partial: Partial) -> str:
    """Return the hash of a finished file; when it is not the expected one it is removed, and DownloadError says so."""
    length, seen = partial.path.stat().st_size, sha256_of(partial.path)
    if wanted.size_bytes not in (None, length):
        partial.discard()
        raise DownloadError(
            f"{wanted.url} has {length} bytes, the file that is known has {wanted.size_bytes}: another file"
        )
    if wanted.sha256 not in (None, seen):
        partial.discard()
        raise DownloadError(
            f"{wanted.url} is not the file that is known: its sha256 is {seen}, expected {wanted.sha256}; not kept"
        )
    return seen


def _check_scheme(url: str, *, plain_http: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and (plain_http or parts.hostname in LOCAL_HOSTS)):
        return
    raise DownloadError(f"{url}: only https is fetched; http only from this machine or from a mirror in FOVEAL_MIRROR")


def _content_range(text: str) -> tuple[int | None, int | None]:
    """Return (start, total) of "bytes 5-9/10"; None for what is not said."""
    span, _, total = text.removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return (int(start) if start.isdecimal() else None), (int(total) if total.isdecimal() else None)
