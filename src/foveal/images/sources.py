"""Turn a source (folder, list, tar shards, Parquet files) into the rows of an image set, without decoding anything.

Every scan is deterministic: the rows come in an order that depends on names alone.
"""

import glob
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from foveal.errors import ImageSetError
from foveal.images.shards import Row, parquet_rows, tar_rows

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".dcm", ".dicom")
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("label", pa.string()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        root: the folder that the uris are relative to.
        rows: a table with the columns of `SCHEMA`.
        num_ignored: files that were seen and left out for their suffix.
    """

    root: Path
    rows: pa.Table
    num_ignored: int = 0


def scan(source: str | Path) -> Listing:
    """List the images of a source.

    Args:
        source: one of
            a folder, searched recursively for `IMAGE_SUFFIXES`, or, where it holds no image, for tar or Parquet files;
            a `.txt` list, one path a line relative to the list's folder, optionally a tab and a label, or a comma and
            labels, of which the first is read;
            one image file;
            a `.tar` or `.parquet` file; a pattern of such files: `data/shard-{000..012}.tar`, `data/*.parquet`.

    Raises:
        ImageSetError: when the source is missing, holds no image, or cannot be listed.
    """
    path = Path(source)
    if path.is_dir():
        return _scan_folder(path)
    if not path.exists():
        if re.search(r"[*?{\[]", str(source)):
            return _scan_shards(_expand(str(source)))
        raise ImageSetError(f"{source} does not exist; give a folder, a .txt list, or .tar or .parquet shards")
    if path.suffix.lower() == ".txt":
        return _scan_list(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        status = _stat(path)
        return Listing(path.parent, _table([(path.name, status.st_size, status.st_mtime, None)]))
    return _scan_shards([path])


def _scan_folder(folder: Path) -> Listing:
    by_suffix: dict[str, list[os.DirEntry[str]]] = {}
    for entry in _walk(folder, set()):
        by_suffix.setdefault(os.path.splitext(entry.name)[1].lower(), []).append(entry)
    images = [entry for suffix in IMAGE_SUFFIXES for entry in by_suffix.get(suffix, [])]
    num_files = sum(len(entries) for entries in by_suffix.values())
    if images:
        num_shards = len(by_suffix.get(".tar", [])) + len(by_suffix.get(".parquet", []))
        if num_shards:
            _log.warning("%s holds images; its %d tar and Parquet files are ignored", folder, num_shards)
        return Listing(folder, _folder_rows(folder, images), num_ignored=num_files - len(images))
    for suffix in (".tar", ".parquet"):
        if shards := by_suffix.get(suffix):
            listing = _scan_shards(sorted(Path(entry.path) for entry in shards), root=folder)
            return Listing(folder, listing.rows, num_ignored=num_files - len(shards))
    seen = Counter({suffix or "without suffix": len(entries) for suffix, entries in by_suffix.items()})
    others = ", ".join(f"{count} {suffix}" for suffix, count in seen.most_common(5)) or "none"
    raise ImageSetError(
        f"{folder} holds no image; looked for {' '.join(IMAGE_SUFFIXES)} .tar .parquet "
        f"in it and its subfolders; {num_files} other files seen ({others})"
    )


def _walk(folder: Path | str, seen: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Yield the visible files below a folder; linked folders are followed, each real folder once."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as found:
            visible = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        entries = [(entry, entry.is_dir()) for entry in visible]
    except OSError as error:
        raise ImageSetError(f"{folder} cannot be listed ({error.strerror}); check its permissions") from error
    for entry, is_folder in entries:
        if is_folder:
            yield from _walk(entry.path, seen)
        else:
            yield entry


def _folder_rows(folder: Path, images: list[os.DirEntry[str]]) -> pa.Table:
    """Make rows of image files; an image lying at CLASS/name, exactly one folder deep, is labelled CLASS."""
    prefix = len(os.path.join(folder, ""))
    rows = []
    for entry in images:
        uri = entry.path[prefix:]
        status = _stat(entry.path)
        parts = uri.split("/")
        rows.append((uri, status.st_size, status.st_mtime, parts[0] if len(parts) == 2 else None))
    return _table(sorted(rows, key=lambda row: row[0]))


def _stat(path: str | Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise ImageSetError(f"{path} cannot be read ({error.strerror}); repair or remove it") from error


def _scan_list(path: Path) -> Listing:
    """Read lines of `path`, `path<tab>label` or `path, label, ...`; order and repeats are kept.

    Listed files count as images whatever their suffix.
    """
    rows = []
    missing = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageSetError(f"{path} cannot be read as a list ({error}); it must be UTF-8, one path a line") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        uri, label = _listed(line, path.parent)
        if not (path.parent / uri).is_file():
            missing.append(f"line {number}: {uri}")
            continue
        status = _stat(path.parent / uri)
        rows.append((uri, status.st_size, status.st_mtime, label or None))
    if missing:
        raise ImageSetError(
            f"{path} names {len(missing)} files that do not exist, first {missing[0]!r}; "
            f"paths are relative to {path.parent}, a label follows after a tab or a comma"
        )
    if not rows:
        raise ImageSetError(f"{path} lists no image; write one path a line, relative to {path.parent}")
    return Listing(path.parent, _table(rows))


def _listed(line: str, folder: Path) -> tuple[str, str]:
    """Return path and label of one line; a comma ends the path only where a file is called what stands before it."""
    uri, tab, label = line.partition("\t")
    if tab or "," not in line or (folder / uri.strip()).is_file():
        return uri.strip(), label.strip()
    fields = line.split(",")
    for count in range(len(fields) - 1, 0, -1):
        if (folder / (name := ",".join(fields[:count]).strip())).is_file():
            return name, fields[count].strip()
    return line.strip(), ""


def listed_rows(root: Path, uris: Sequence[str], *, labels: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of some files below a folder, in their order.

    Raises:
        ImageSetError: files that do not exist, or none at all.
    """
    if missing := [uri for uri in uris if not (root / uri).is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ImageSetError(
            f"{root} lacks {len(missing)} of {len(uris)} files: {', '.join(missing[:3])}{more}; copy the data set again"
        )
    if not uris:
        raise ImageSetError(f"no image of {root} is listed; check the lists of the data set")
    stats = [_stat(root / uri) for uri in uris]
    names: Sequence[str | None] = labels or [None] * len(uris)
    named = zip(uris, stats, names, strict=True)
    return _table([(uri, status.st_size, status.st_mtime, label) for uri, status, label in named])


def _scan_shards(paths: list[Path], root: Path | None = None) -> Listing:
    """List tar or Parquet shards in the order given."""
    root = root or Path(os.path.commonpath([path.parent for path in paths]))
    kinds = {path.suffix.lower() for path in paths}
    names = [path.relative_to(root).as_posix() for path in paths]
    if kinds == {".tar"}:
        rows = [row for path, name in zip(paths, names, strict=True) for row in tar_rows(path, name, IMAGE_SUFFIXES)]
        table = _table(rows)
    elif kinds == {".parquet"}:
        shards = [parquet_rows(path, name) for path, name in zip(paths, names, strict=True)]
        table = _table([row for shard in shards for row in shard.rows])
        table = table.replace_schema_metadata({"parquet_footers": "".join(shard.footer_sha256 for shard in shards)})
    else:
        found = " ".join(sorted(kind or "no suffix" for kind in kinds))
        raise ImageSetError(
            f"{paths[0]}: a source of files must be all .tar, all .parquet, or one .txt list; found {found}"
            + (
                "; unpack compressed tar files, images are read at their offset"
                if kinds & {".gz", ".tgz", ".zst"}
                else ""
            )
        )
    if table.num_rows == 0:
        raise ImageSetError(
            f"{len(paths)} shards, first {paths[0]}, hold no image; looked for {' '.join(IMAGE_SUFFIXES)}"
        )
    return Listing(root, table)


def _expand(pattern: str) -> list[Path]:
    """Expand `{000..012}` and `{a,b}` like a shell, then `*`, `?` and `[...]`; every braced name must exist."""
    paths: list[Path] = []
    for name in _expand_braces(pattern):
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            if name == pattern:
                raise ImageSetError(f"the pattern {pattern} matches no file; check its folder and its ending")
            raise ImageSetError(f"{pattern} asks for {name}, which does not exist; check the numbers and the folder")
        paths += [Path(path) for path in found]
    return paths


def _expand_braces(pattern: str) -> list[str]:
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for index, piece in enumerate(pieces):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", piece)
        if index % 2 == 0:
            choices.append([piece])
        elif numbers:
            first, last = numbers.groups()
            choices.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in itertools.product(*choices)]


def _table(rows: Sequence[Row]) -> pa.Table:
    uris, sizes, mtimes, labels = zip(*rows, strict=True) if rows else ([], [], [], [])
    try:
        uri_column = pa.array(uris, pa.string())
    except UnicodeEncodeError as error:  # what Python makes of bytes in a file name that are no UTF-8
        raise ImageSetError(f"the file name {error.object!r} is not UTF-8; rename the file") from error
    microseconds = pa.array([round(mtime * 1e6) for mtime in mtimes], pa.int64())
    return pa.table(
        [
            uri_column,
            pa.array(sizes, pa.int64()),
            microseconds.cast(SCHEMA.field("mtime").type),
            labels,
        ],
        schema=SCHEMA,
    )
