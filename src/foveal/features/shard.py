"""One shard of a feature store: a pure function of (image set, shard number, stamp), published whole or not at all.

Whatever runs it (one process, many, an array of jobs, Ray) writes the same bytes on the same kind of CPU. Batches start
at fixed rows of the set, and an image that cannot be read leaves its batch smaller without moving the next.
"""

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foveal.errors import BadImageError, FovealError
from foveal.features.batches import map_ahead
from foveal.features.extract import Model
from foveal.features.packing import SCALE_SUFFIX, cosines, pack, unpack
from foveal.features.patch_pca import Projection
from foveal.features.store import BAD_IMAGES, DONE, ROW_SCHEMA, ROWS, StoreCard, shard_folder
from foveal.features.tokens import encode_arrays
from foveal.features.unchanged import check_unchanged
from foveal.files import publish_new, sha256_of, staging_of
from foveal.images.decode import decode
from foveal.images.imageset import ImageSet
from foveal.images.ledger import BadImageLedger
from foveal.images.preprocess import Preprocess

NUM_MEASURED = 8  # images at the start of each shard whose stored features are compared with float32


@dataclass(frozen=True)
class ReadImage:
    """One image of the set, prepared for the model, or the reason why not."""

    row: int
    sha256: str | None = None
    num_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    array: np.ndarray | None = None
    error: BadImageError | None = None


def extract_shard(
    store: Path,
    shard: int,
    *,
    card: StoreCard,
    model: Model,
    images: ImageSet,
    preprocess: Preprocess,
    num_threads: int = 2,
    max_bad_share: float = 0.01,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Extract one shard of a store; memory holds three batches, whatever the size of the set.

    Args:
        store: the folder, with its card and, where one is used, its PCA.
        shard: its number.
        card: of the store.
        model: the model of the stamp.
        images: the image set of the card.
        preprocess: of the stamp.
        num_threads: decoding threads.
        max_bad_share: of the whole set; this shard alone stops when it holds more bad images.
        progress: called with the images done in this shard after each batch.

    Raises:
        ImageSetError: too many bad images, or a file that changed since the image set was made.
        FovealError: no space, no permission, features that are not finite, or images of different sizes with patches.
    """
    final = shard_folder(store, shard)
    staging = staging_of(final)
    ledger_path = store / BAD_IMAGES / f"{shard:05d}.jsonl"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        ledger_path.unlink(missing_ok=True)
        ledger = BadImageLedger(ledger_path, len(images), max_bad_share)
        with _ShardWriter(staging, card, store) as writer:
            for batch in _batches(images, card.rows_of(shard), preprocess, card.stamp["batch_size"], num_threads):
                for image in batch:
                    if image.error is not None:
                        uri = images.uri(image.row)
                        ledger.record(uri, reason=image.error.reason, message=str(image.error))
                writer.add(batch, model, images)
                if progress:
                    progress(writer.num_images)
        writer.finish(shard, images)
        publish_new(staging, final)
    except OSError as error:
        raise FovealError(_cannot_write(store, shard, card, error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_image(images: ImageSet, row: int, preprocess: Preprocess) -> ReadImage:
    """Read, hash, decode and prepare one image; a bad one comes back with its error.

    Raises:
        ImageSetError: the size or the sha256 that the image set has for it is another.
    """
    try:
        data = images.read(row)
    except BadImageError as error:
        return ReadImage(row, error=error)
    digest = hashlib.sha256(data).hexdigest()
    check_unchanged(images, row, num_bytes=len(data), sha256=digest)
    try:
        pixels = decode(data, channels=preprocess.channels)
        height, width = pixels.shape[:2]
        return ReadImage(row, digest, len(data), width, height, array=preprocess(pixels))
    except BadImageError as error:
        return ReadImage(row, digest, len(data), error=error)


def _batches(
    images: ImageSet, rows: range, preprocess: Preprocess, batch_size: int, num_threads: int
) -> Iterator[list[ReadImage]]:
    """Yield the rows of a shard in batches that start at fixed rows, read ahead in threads."""
    batch: list[ReadImage] = []
    read = map_ahead(lambda row: read_image(images, row, preprocess), rows, num_threads, ahead=2 * batch_size)
    for image in read:
        batch.append(image)
        if len(batch) == batch_size or image.row == rows[-1]:
            yield batch
            batch = []


class _ShardWriter:
    """Appends batches to the files of one shard. Appending, not mapping: a full disk is then an error, not a signal."""

    def __init__(self, staging: Path, card: StoreCard, store: Path) -> None:
        self.num_images = 0
        self._staging, self._card = staging, card
        self._projections = {name: Projection(store, name) for name in card.shapes if card.is_reduced(name)}
        self._files: dict[str, _ArrayFile] = {}
        for name, shape in card.shapes.items():
            self._files[name] = _ArrayFile(staging / f"{name}.npy", shape, card.dtype)
            if card.dtype == "int8":
                scale = name + SCALE_SUFFIX
                self._files[scale] = _ArrayFile(staging / f"{scale}.npy", shape[:-1], "float32")
        self._rows: list[ReadImage] = []
        self._cosines: dict[str, np.ndarray] = {}

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:  # closes all, also when one of them cannot write its rest
            for file in self._files.values():
                stack.callback(file.close)

    def add(self, batch: list[ReadImage], model: Model, images: ImageSet) -> None:
        """Encode the readable images of one batch and append their features."""
        arrays = [image.array for image in batch if image.array is not None]
        if arrays:
            self._check_grids(batch, model, images)
            stamp = self._card.stamp
            encoded = encode_arrays(
                model.engine,
                arrays,
                tokens=stamp["tokens"],
                layers=stamp["layers"],
                patch_size=model.card.backbone.patch_size,
            )
            for name, values in encoded.items():
                self._append(name, values.numpy())
        self._rows += [ReadImage(**{**vars(image), "array": None}) for image in batch]
        self.num_images += len(batch)

    def _append(self, name: str, values: np.ndarray) -> None:
        projection = self._projections.get(name)
        stored = values if projection is None else projection.apply(values)
        packed = pack(stored, dtype=self._card.dtype, name=name)
        for part, array in packed.items():
            self._files[part].append(array)
        if name not in self._cosines:
            first = {part: array[:NUM_MEASURED] for part, array in packed.items()}
            restored = unpack(first[name], first.get(name + SCALE_SUFFIX))
            restored = restored if projection is None else projection.invert(restored)
            self._cosines[name] = cosines(restored, values[:NUM_MEASURED])

    def _check_grids(self, batch: list[ReadImage], model: Model, images: ImageSet) -> None:
        """Refuse an image whose patches do not fit the store, by name."""
        patch = model.card.backbone.patch_size
        expected = next((shape[:2] for shape in self._card.shapes.values() if len(shape) == 3), None)
        for image in batch:
            if image.array is None or expected is None:
                continue
            grid = (image.array.shape[1] // patch, image.array.shape[2] // patch)
            if grid != expected:
                raise FovealError(
                    f"{images.uri(image.row)} gives {grid[0]} x {grid[1]} patches, and the first image of the set "
                    f"{expected[0]} x {expected[1]}; use fit 'crop', or extract images of one shape at a time"
                )

    def finish(self, shard: int, images: ImageSet) -> None:
        """Write the sidecar and the manifest."""
        pq.write_table(_sidecar(self._rows, images), self._staging / ROWS)
        bad = Counter(image.error.reason for image in self._rows if image.error is not None)
        files = sorted(self._staging.iterdir())
        done: dict[str, Any] = {
            "shard": shard,
            "first_row": self._card.rows_of(shard).start,
            "num_images": len(self._rows),
            "num_features": len(self._rows) - bad.total(),
            "bad": dict(sorted(bad.items())),
            "cosine": {
                name: {"min": round(float(found.min()), 8), "mean": round(float(found.mean()), 8)}
                for name, found in self._cosines.items()
            },
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
        }
        (self._staging / DONE).write_text(json.dumps(done, indent=2) + "\n")


class _ArrayFile:
    """An .npy file that grows; the number of rows enters the header at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self._shape, self._dtype, self._num_rows = shape, np.dtype(dtype), 0
        self._file: BinaryIO = path.open("w+b")
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows).data)
        self._num_rows += len(rows)

    def close(self) -> None:
        """Put the number of rows into the header; NumPy leaves room there for a first dimension that grows."""
        try:
            self._file.seek(0)
            self._write_header()
        finally:
            self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._num_rows, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def _sidecar(rows: list[ReadImage], images: ImageSet) -> pa.Table:
    """Return one row for each image of a shard; `id` is the set's own where it has one, else the uri."""
    start = rows[0].row
    here = images.rows.slice(start, len(rows))
    uris = here.column("uri")
    ids = here.column("id").cast(pa.string()) if "id" in here.column_names else uris
    columns = {
        "row": [image.row for image in rows],
        "id": ids,
        "uri": uris,
        "sha256": [image.sha256 for image in rows],
        "bytes": [image.num_bytes for image in rows],
        "width": [image.width for image in rows],
        "height": [image.height for image in rows],
        "label": here.column("label"),
        "reason": [image.error and image.error.reason for image in rows],
    }
    arrays = [
        values.combine_chunks()
        if isinstance(values, pa.ChunkedArray)
        else pa.array(values, ROW_SCHEMA.field(name).type)
        for name, values in columns.items()
    ]
    return pa.table(arrays, schema=ROW_SCHEMA)


def _cannot_write(store: Path, shard: int, card: StoreCard, error: OSError) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{store} cannot be written ({error}); the finished shards stay; repair it and run the same command again"
        )
    needed = len(card.rows_of(shard)) * sum(card.bytes_per_image.values())
    free = shutil.disk_usage(store).free
    return (
        f"no space left for shard {shard} of {store}: it needs {needed:,} bytes, {free:,} are free ({error.strerror}); "
        "the finished shards stay; free space and run the same command again"
    )
