"""The image set: a manifest of images, wherever they lie, with a stable hash; the first artefact of the house."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foveal.errors import BadImageError, ImageSetError
from foveal.files import publish, staging_of, sync, write_atomically
from foveal.images.decode import DEFAULT_LIMITS, DecodeLimits, decode
from foveal.images.shards import Reader
from foveal.images.sources import SCHEMA, listed_rows, scan

CARD_NAME = "imageset.json"
CARD_KIND = "foveal image set"
CARD_VERSION = 1
_ROWS_PER_PART = 1_000_000
_ROWS_PER_HASH_BLOCK = 65_536  # part of the hash's definition: changing it changes every hash


class ImageSet:
    """An ordered set of images: one row each, their bytes left where they are.

    The columns are uri, bytes (size; null in Parquet sources), mtime and label (null where unknown), then any further
    ones of the image-set artefact that a stage has filled, such as sha256 or split. Uris are relative to `root`, so
    that the set has the same hash wherever its folder is mounted.

    Sets are immutable and picklable; files are opened when first read, in each process for itself.

    Example:
        >>> images = ImageSet.open("photos/")  # doctest: +SKIP
        >>> images.decode(0).shape  # doctest: +SKIP
        (480, 640, 3)
    """

    def __init__(self, rows: pa.Table, *, root: Path, num_ignored: int = 0) -> None:
        """Take rows as they are; missing standard columns become null.

        Args:
            rows: a table with at least the string column uri.
            root: the folder that relative uris start from.
            num_ignored: files the source held besides the images, for reports.
        """
        if "uri" not in rows.column_names:
            raise ImageSetError(
                f"an image set needs the column uri; found {', '.join(rows.column_names) or 'no column'}"
            )
        standard = [
            rows.column(field.name).cast(field.type)
            if field.name in rows.column_names
            else pa.nulls(len(rows), field.type)
            for field in SCHEMA
        ]
        extra = [field for field in rows.schema if field.name not in SCHEMA.names]
        self.rows = pa.table(
            standard + [rows.column(field.name) for field in extra],
            schema=pa.schema([*SCHEMA, *extra], metadata=rows.schema.metadata),
        )
        self.root = Path(os.path.abspath(root))
        self.num_ignored = num_ignored
        self._reader = Reader(self.root)

    @classmethod
    def open(cls, source: str | Path) -> "ImageSet":
        """Open a folder, a .txt list, tar or Parquet shards or a pattern of them, or a saved image set.

        Raises:
            ImageSetError: when the source is missing, empty or damaged; `foveal.images.sources.scan` says what is read.
        """
        if (Path(source) / CARD_NAME).is_file():
            return cls._load(Path(source))
        listing = scan(source)
        return cls(listing.rows, root=listing.root, num_ignored=listing.num_ignored)

    @classmethod
    def of_files(cls, root: str | Path, uris: Sequence[str], *, labels: Sequence[str] | None = None) -> "ImageSet":
        """Make a set of some files of a folder, in this order; a list in memory.

        Args:
            root: the folder.
            uris: paths relative to it.
            labels: one for each.

        Raises:
            ImageSetError: files that do not exist, or none at all; the message names the first.
        """
        return cls(listed_rows(Path(root), uris, labels=labels), root=Path(root))

    def __len__(self) -> int:
        return self.rows.num_rows

    def uri(self, index: int) -> str:
        """Return the uri of one image as the manifest has it, relative to `root`."""
        return self.rows.column("uri")[index].as_py()

    def read(self, index: int) -> bytes:
        """Return the bytes of one image.

        Raises:
            BadImageError: reason "unreadable".
        """
        return self._reader.read(self.uri(index))

    def decode(
        self,
        index: int,
        *,
        channels: int = 3,
        limits: DecodeLimits = DEFAULT_LIMITS,
        min_short_side: int | None = None,
    ) -> np.ndarray:
        """Return one image as (H, W, 3) uint8 upright RGB, or in other channels; see `foveal.images.decode.decode`.

        Raises:
            BadImageError: "unreadable" or a reason of `decode`; the message starts with the uri.
        """
        data = self.read(index)
        try:
            return decode(data, channels=channels, limits=limits, min_short_side=min_short_side)
        except BadImageError as error:
            raise BadImageError(error.reason, f"{self.uri(index)}: {error}") from error

    @property
    def labels(self) -> list[str] | None:
        """The label of every image, or None unless every image has one (`rows["label"]` holds the partial ones).

        Where the source names no label at all, as a list of paths does not, files that lie at CLASS/name, in two or
        more folders, have that of their folder.
        """
        column = self.rows.column("label")
        if not column.null_count:
            return column.to_pylist()
        return self._folders() if column.null_count == len(self) else None

    def _folders(self) -> list[str] | None:
        """Return the folder of each file, or None where there is but one or some lie elsewhere than at CLASS/name."""
        found = []
        for uri in self.rows.column("uri").to_pylist():
            parts = uri.split("/")
            if len(parts) != 2 or "#" in uri:  # a place within a shard
                return None
            found.append(parts[0])
        return found if len(set(found)) > 1 else None

    @cached_property
    def hash(self) -> str:
        """The sha256 over the rows in their order, all columns but mtime (a copy of a data set is the same set).

        For Parquet sources the digests of the file footers stand in for the sizes of the images.
        """
        rows = self.rows.drop_columns(["mtime"])
        digest = hashlib.sha256(json.dumps(rows.column_names).encode())
        digest.update((rows.schema.metadata or {}).get(b"parquet_footers", b""))
        for start in range(0, rows.num_rows, _ROWS_PER_HASH_BLOCK):
            block = rows.slice(start, _ROWS_PER_HASH_BLOCK).to_pydict()
            digest.update(json.dumps(list(block.values()), default=str).encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """Return the images at these indices, in this order; repeats are allowed.

        Raises:
            ImageSetError: when an index is outside the set, or the indices are not integers.
        """
        wanted = np.asarray(indices)
        wanted = wanted.astype(np.int64) if wanted.size == 0 else wanted
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise ImageSetError(f"indices of shape {wanted.shape} and type {wanted.dtype}; give one list of integers")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ImageSetError(f"indices from {wanted.min()} to {wanted.max()}; allowed are 0 to {len(self) - 1}")
        return ImageSet(self.rows.take(pa.array(wanted)), root=self.root)

    def save(self, folder: str | Path) -> None:
        """Write the manifest as Parquet parts and a JSON card; the images stay where they are.

        Everything is written under a temporary name, synced to disk and renamed: the folder is whole or absent.

        Raises:
            ImageSetError: when `folder` already holds something; nothing is ever overwritten.
        """
        folder = Path(os.path.abspath(folder))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ImageSetError(f"{folder} already exists and is not empty; save under another name or remove it first")
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for part, start in enumerate(range(0, max(len(self), 1), _ROWS_PER_PART)):
                pq.write_table(self.rows.slice(start, _ROWS_PER_PART), temporary / f"part-{part:05d}.parquet")
            (temporary / CARD_NAME).write_text(json.dumps(self._card(), indent=2) + "\n", encoding="utf-8")
            publish(temporary, folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise ImageSetError(f"{folder} cannot be written ({error}); check space and permissions") from error

    def save_in(self, folder: Path) -> None:
        """Write the manifest into a folder of other things, over an earlier one; the card last, which makes it a set.

        Raises:
            OSError: it cannot be written; where there is no space for it the earlier one stays.
        """
        starts = range(0, max(len(self), 1), _ROWS_PER_PART)
        paths = [folder / f"part-{part:05d}.parquet" for part in range(len(starts))]
        try:
            for path, start in zip(paths, starts, strict=True):
                pq.write_table(self.rows.slice(start, _ROWS_PER_PART), staging_of(path))
                sync(staging_of(path))
        except OSError:
            for path in paths:
                staging_of(path).unlink(missing_ok=True)
            raise
        card = folder / CARD_NAME
        card.unlink(missing_ok=True)
        for old in folder.glob("part-*.parquet"):
            old.unlink()
        for path in paths:
            staging_of(path).replace(path)
        write_atomically(card, json.dumps(self._card(), indent=2) + "\n", staging=staging_of(card))

    def _card(self) -> dict[str, str | int]:
        num_labelled = len(self) - self.rows.column("label").null_count
        return {
            "kind": CARD_KIND,
            "version": CARD_VERSION,
            "num_images": len(self),
            "num_labelled": num_labelled,
            "root": str(self.root),
            "hash": self.hash,
        }

    @classmethod
    def _load(cls, folder: Path) -> "ImageSet":
        try:
            card = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
            kind, version, root, saved_hash = (card[key] for key in ("kind", "version", "root", "hash"))
            parts = sorted(folder.glob("part-*.parquet"))
            rows = pa.concat_tables([pq.read_table(part) for part in parts])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ImageSetError(f"{folder} is a damaged image set ({error}); save it again from its source") from error
        if kind != CARD_KIND or version != CARD_VERSION:
            raise ImageSetError(
                f"{folder}/{CARD_NAME} says kind {kind!r}, version {version!r}; "
                f"this foveal reads {CARD_KIND!r}, version {CARD_VERSION}"
            )
        if not Path(root).is_dir():
            raise ImageSetError(
                f"the images of {folder} were below {root}, which does not exist; "
                f'mount them there, or change "root" in {folder / CARD_NAME}'
            )
        loaded = cls(rows, root=Path(root))
        if loaded.hash != saved_hash:
            raise ImageSetError(
                f"the rows of {folder} do not match the hash in its card; save it again from its source"
            )
        return loaded
