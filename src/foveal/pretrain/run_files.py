"""Files of any run: the lock that keeps other processes out, and the metrics as they grow."""

import fcntl
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from foveal.errors import RunError
from foveal.files import write_atomically

LOCK = ".lock"


def locked(folder: Path) -> IO[str]:
    """Return the lock of a run folder, held until it is closed.

    Raises:
        RunError: another process holds it.
        OSError: it cannot be written.
    """
    lock = open(folder / LOCK, "w")  # noqa: SIM115 (held as long as the run)
    try:
        # Not flock(): loading workers would inherit that lock and hold it for seconds after a SIGKILL.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise RunError(f"{folder} is being written by another process; wait for it or choose another folder") from error
    return lock


class MetricsFile:
    """The metrics of a run, one JSON dictionary a line, each with its step.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def open(self, step: int) -> None:
        """Drop metrics of steps that will be run again, from `step` on, and open the file for appending."""
        kept = [line for line in read_lines(self._path) if 0 < step > line["step"]]
        try:
            write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = open(self._path, "a")  # noqa: SIM115 (closed with the run)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error}; make room and run the same command again") from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line, if the file is open; what is not finite is written as null, for JSON has no word for it."""
        if self._file is None:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error}; make room and run the same command again") from error

    def sync(self) -> None:
        """Flush the metrics so far to the disk, so that after a power cut no checkpoint is ahead of them."""
        if self._file is not None:
            with suppress(OSError, ValueError):  # a full disk is reported by the next line; or the run is over
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # a line that could not be written has been reported already
                self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file, as `read_metrics` does; none where there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
