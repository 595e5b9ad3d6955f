"""List tar and Parquet shards, and read single images back out of them by position."""

import bisect
import hashlib
import os
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foveal.errors import BadImageError, ImageSetError

Row = tuple[str, int | None, float, str | None]  # uri, bytes, mtime in seconds, label

IMAGE_COLUMNS = ("image", "jpg", "bytes", "img")
LABEL_COLUMNS = ("class_name", "label")

_TAR_URI = re.compile(r"(.+\.tar)#(\d+)\+(\d+)", re.IGNORECASE | re.DOTALL)
_PARQUET_URI = re.compile(r"(.+\.parquet)#(\d+)", re.IGNORECASE | re.DOTALL)


def tar_rows(path: Path, name: str, suffixes: tuple[str, ...]) -> Iterator[Row]:
    """List the images of one uncompressed tar file in WebDataset naming.

    Members whose paths agree up to the first dot of the file name are one sample. Each member with an image suffix
    becomes a row; the text of the sample's `.cls` member is its label.

    Args:
        path: the tar file.
        name: what to call it in the uris, `name#offset+length`.
        suffixes: lower-case image suffixes with their dots.
    """
    images: list[tuple[str, int, int, float]] = []
    labels: dict[str, str] = {}
    file_size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, file_name = member.name.rpartition("/")
                stem, _, extension = file_name.partition(".")
                if not member.isreg() or member.issparse() or not stem:
                    continue
                if member.offset_data + member.size > file_size:
                    raise tarfile.ReadError(f"member {member.name} is cut off")
                key = f"{folder}/{stem}"
                if ("." + extension.lower()).endswith(suffixes):
                    images.append((key, member.offset_data, member.size, member.mtime))
                elif extension.lower() == "cls":
                    text = tar.extractfile(member)
                    labels[key] = text.read(1024).decode("utf-8", "replace").strip() if text else ""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageSetError(
            f"{path} is not a whole, uncompressed tar file ({error}); write or copy it again, unpacked if compressed"
        ) from error
    for key, offset, size, mtime in images:
        yield f"{name}#{offset}+{size}", size, float(mtime), labels.get(key) or None


@dataclass(frozen=True)
class ParquetShard:
    """The rows of one Parquet file, and the digest of its footer, which holds the sizes and statistics of its pages."""

    rows: list[Row]
    footer_sha256: str


def parquet_rows(path: Path, name: str) -> ParquetShard:
    """List the images of one Parquet file, without reading the images; so the column `bytes` stays empty.

    The images are in the first of the columns image, jpg, bytes, img that holds bytes or struct{bytes, ...} (as
    Hugging Face writes); the label in class_name, else label.
    """
    try:
        with pq.ParquetFile(path) as file:
            _image_column(file.schema_arrow, path)
            label_column = next((column for column in LABEL_COLUMNS if column in file.schema_arrow.names), None)
            num_rows = file.metadata.num_rows
            labels: list[Any] = [None] * num_rows
            if label_column:
                labels = file.read([label_column], use_threads=False).column(0).to_pylist()
        digest = _footer_sha256(path)
    except (pa.ArrowException, OSError) as error:
        raise ImageSetError(f"{path} is not a readable Parquet file ({error}); write or copy it again") from error
    mtime = path.stat().st_mtime
    rows: list[Row] = [
        (f"{name}#{index}", None, mtime, None if label is None else str(label)) for index, label in enumerate(labels)
    ]
    return ParquetShard(rows, digest)


def _image_column(schema: pa.Schema, path: Path) -> str:
    for name in IMAGE_COLUMNS:
        if name in schema.names and _holds_bytes(schema.field(name).type):
            return name
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ImageSetError(
        f"{path} has no image column; looked for {', '.join(IMAGE_COLUMNS)} of binary or struct{{bytes}} type, "
        f"found {found}; rename or rewrite the column"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _footer_sha256(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


class Reader:
    """Read the bytes behind a uri: a file, `shard.tar#offset+length` or `file.parquet#row`.

    Open files and, for Parquet, the image columns of the row groups used last are kept for the next call, per process
    and outside of pickles: a reader is cheap to send to workers. Sequential reading decodes each row group once;
    random reading of a Parquet file whose row groups exceed the cache decodes a group for each image, so shuffle
    by blocks there, or use tar shards, where each image is one pread.

    Args:
        root: the folder that relative uris start from.
        cache_bytes: how much of Parquet row groups to keep; the one in use is kept whatever its size.
        max_files: how many tar and Parquet files to keep open, each kind.
    """

    def __init__(self, root: Path, *, cache_bytes: int = 256 * 1024 * 1024, max_files: int = 16) -> None:
        self._root, self._cache_bytes, self._max_files = root, cache_bytes, max_files
        self._forget()

    def __getstate__(self) -> tuple[Path, int, int]:
        return self._root, self._cache_bytes, self._max_files

    def __setstate__(self, state: tuple[Path, int, int]) -> None:
        self._root, self._cache_bytes, self._max_files = state
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tars: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._tables: OrderedDict[Path, _ParquetTable] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, int], pa.ChunkedArray] = OrderedDict()

    def read(self, uri: str) -> bytes:
        """Return the bytes of one image.

        Raises:
            BadImageError: reason "unreadable" when the file is gone, too short, or the disk reports an error.
        """
        if self._pid != os.getpid():  # a forked child shares no lock and no file position with its parent
            self._forget()
        try:
            if match := _TAR_URI.fullmatch(uri):
                return self._read_tar(self._root / match[1], offset=int(match[2]), length=int(match[3]))
            if match := _PARQUET_URI.fullmatch(uri):
                return self._read_parquet(self._root / match[1], row=int(match[2]))
            return (self._root / uri).read_bytes()
        except (OSError, pa.ArrowException, IndexError) as error:
            raise BadImageError("unreadable", f"{self._root / uri} cannot be read ({error}); restore it") from error

    def _read_tar(self, path: Path, *, offset: int, length: int) -> bytes:
        with self._lock:
            if path not in self._tars:
                self._tars[path] = _OpenFile(path)
            self._tars.move_to_end(path)
            while len(self._tars) > self._max_files:
                self._tars.popitem(last=False)
            file = self._tars[path]
        data = os.pread(file.descriptor, length, offset)  # outside the lock: threads read side by side
        if len(data) != length:
            raise OSError(f"{len(data)} of {length} bytes left at offset {offset}")
        return data

    def _read_parquet(self, path: Path, *, row: int) -> bytes:
        with self._lock:
            if path not in self._tables:
                self._tables[path] = _ParquetTable(path)
            self._tables.move_to_end(path)
            while len(self._tables) > self._max_files:
                self._tables.popitem(last=False)
            table = self._tables[path]
            group, row_in_group = table.locate(row)
            if (path, group) not in self._groups:
                self._groups[path, group] = table.read_group(group)
            self._groups.move_to_end((path, group))
            while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > self._cache_bytes:
                self._groups.popitem(last=False)
            value = self._groups[path, group][row_in_group].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise OSError("the row holds no image bytes")
        return data


class _OpenFile:
    """A descriptor for pread, closed once nobody holds it, so that eviction cannot cut off a reading thread."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _ParquetTable:
    """One open Parquet file: where its row groups start, and which column holds the images."""

    def __init__(self, path: Path) -> None:
        # No threads and no read-ahead pool: both would be dead in a forked worker.
        self._file = pq.ParquetFile(path, pre_buffer=False)
        self._column = _image_column(self._file.schema_arrow, path)
        self._starts = [0]
        for group in range(self._file.metadata.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)

    def locate(self, row: int) -> tuple[int, int]:
        if row >= self._starts[-1]:
            raise IndexError(f"row {row} of {self._starts[-1]}")
        group = bisect.bisect_right(self._starts, row) - 1
        return group, row - self._starts[group]

    def read_group(self, group: int) -> pa.ChunkedArray:
        return self._file.read_row_group(group, columns=[self._column], use_threads=False).column(0)
