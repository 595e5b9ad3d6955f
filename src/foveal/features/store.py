"""The feature store: features of an image set in shards of a fixed number of images, and the reader of it.

    STORE/card.json              what it is: stamp, image set, arrays, shard size; never changes
    STORE/engine/                which engine was chosen, and its int8 numbers, where there was a choice
    STORE/pca/                   the PCA of the patches, where one is used
    STORE/shards/00000/          one folder for each `shard_size` images of the set, whole or absent:
        cls.npy                    (n, ...) in the order of the set; n are the images that could be read
        cls.scale.npy              int8 only: (n, ...) float32, one for each vector
        rows.parquet               one row for each image of the shard, readable or not
        done.json                  sha256 of the files, counts, cosine of what is stored to float32
    STORE/bad_images/00000.jsonl the images of a shard that could not be read, as they were met
    STORE/summary.json           written when every shard is done

Shapes: n rows; per row D, (R, D) or (grid_h, grid_w, D).
"""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foveal.errors import FovealError, nearest
from foveal.features.packing import SCALE_SUFFIX, Dtype, bytes_of, unpack
from foveal.features.patch_pca import Projection

logger = logging.getLogger(__name__)

KIND, VERSION = "foveal feature store", 1
CARD, ENGINE, SHARDS, BAD_IMAGES, SUMMARY = "card.json", "engine", "shards", "bad_images", "summary.json"
ROWS, DONE = "rows.parquet", "done.json"
ROW_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("reason", pa.string()),
    ]
)
_NAME = re.compile(r"(cls|registers|patches|mean)(\.layer[0-9]+)?")  # names of files come from these
_MAX_OPEN_FILES = 512  # of a quarter of a million images at the usual shard size


@dataclass(frozen=True)
class StoreCard:
    """What a store says of itself, in card.json.

    Attributes:
        stamp: see `foveal.features.stamp`.
        image_set: hash, num_images and root of the set.
        shapes: of each array, for one image, without PCA's reduction left out: as stored.
        origin: the arguments of `foveal.load` that open its model, where that is known; not part of the stamp.
    """

    stamp: dict[str, Any]
    image_set: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    origin: dict[str, Any] | None = None

    @property
    def dtype(self) -> Dtype:
        """The type of the arrays."""
        dtype: Dtype = self.stamp["dtype"]
        return dtype

    @property
    def num_images(self) -> int:
        """Images in the set."""
        return int(self.image_set["num_images"])

    @property
    def shard_size(self) -> int:
        """Images in every shard but the last."""
        return int(self.stamp["shard_size"])

    @property
    def num_shards(self) -> int:
        """Shards of the whole set."""
        return -(-self.num_images // self.shard_size)

    @property
    def bytes_per_image(self) -> dict[str, int]:
        """Bytes that one image takes, by array."""
        return {name: bytes_of(shape, self.dtype) for name, shape in self.shapes.items()}

    def rows_of(self, shard: int) -> range:
        """Return the rows of the image set that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def is_reduced(self, name: str) -> bool:
        """Say whether an array holds coordinates of a PCA."""
        return self.stamp["pca"] is not None and name.partition(".")[0] == "patches"

    def to_json(self) -> str:
        """Return the contents of card.json."""
        return json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}, indent=2) + "\n"


def read_card(store: Path) -> StoreCard:
    """Read the card of a store; FovealError when there is none or it cannot be understood."""
    path = store / CARD
    if not path.is_file():
        raise FovealError(f"{store} is not a feature store: it has no {CARD}; make one with foveal extract")
    try:
        found = json.loads(path.read_text())
        kind, version = found.pop("kind"), found.pop("version")
        if (kind, version) != (KIND, VERSION):
            raise FovealError(f"{path} says kind {kind!r}, version {version!r}; this foveal reads {KIND!r}, {VERSION}")
        shapes = {name: tuple(shape) for name, shape in found["shapes"].items()}
        if wrong := [name for name in shapes if not _NAME.fullmatch(name)]:
            raise FovealError(f"{path} names an array {wrong[0]!r}, which no store has; extract into a new store")
        return StoreCard(found["stamp"], found["image_set"], shapes, found.get("origin"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FovealError(
            f"{path} cannot be understood ({error!r}); restore it, or extract into a new store"
        ) from error


def shard_folder(store: Path, shard: int) -> Path:
    """Return where a shard lies."""
    return store / SHARDS / f"{shard:05d}"


def read_done(store: Path, shard: int) -> dict[str, Any] | None:
    """Return the manifest of a finished shard, or None when it is not there; FovealError when it is damaged."""
    path = shard_folder(store, shard) / DONE
    try:
        done: dict[str, Any] = json.loads(path.read_text())
        return done
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FovealError(
            f"{path} cannot be read ({error}); remove {path.parent} and run foveal extract again"
        ) from error


class FeatureStore:
    """Features on the disk, read where they are asked for; nothing is loaded as a whole.

    Row i of the arrays belongs to row i of `rows`. A store whose extraction is unfinished opens with a warning and
    holds the finished shards.

    Attributes:
        path: of the folder.
        card: its card.
        stamp: what decided the numbers: model, preprocessing, decoder, engine, tokens, layers, dtype and more.
        complete: every shard is there.
        names: of the arrays, such as "cls" or "patches.layer5".

    Example:
        >>> store = FeatureStore.open("features")  # doctest: +SKIP
        >>> store.read("cls", [7, 3]).shape  # doctest: +SKIP
        (2, 384)
    """

    def __init__(self, path: Path, card: StoreCard, manifests: dict[int, dict[str, Any]]) -> None:
        """Take the manifests of the finished shards by number; see `open`."""
        self.path, self.card = path, card
        self.stamp = card.stamp
        self.complete = len(manifests) == card.num_shards
        self.names = list(card.shapes)
        self._shards = sorted(manifests)
        counts = [manifests[shard]["num_features"] for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._open: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> "FeatureStore":
        """Open a store.

        Raises:
            FovealError: it is none, is damaged, or not one shard is finished.
        """
        path = Path(path)
        card = read_card(path)
        manifests = {}
        for shard in range(card.num_shards):
            if (done := read_done(path, shard)) is not None:
                manifests[shard] = done
        if not manifests:
            raise FovealError(f"{path} has no finished shard yet; run foveal extract again to continue")
        store = cls(path, card, manifests)
        if not store.complete:
            logger.warning(
                "%s is unfinished: %d of %d shards; run foveal extract again to continue",
                path,
                len(manifests),
                card.num_shards,
            )
        return store

    def __len__(self) -> int:
        """The number of rows of every array: the readable images of the finished shards."""
        return int(self._starts[-1])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one row of an array."""
        if name not in self.card.shapes:
            raise FovealError(f"{self.path} has no {name!r}; it has {', '.join(self.names)}{nearest(name, self.names)}")
        return self.card.shapes[name]

    @cached_property
    def rows(self) -> pa.Table:
        """The images that the rows of the arrays belong to: row (in the set), id, uri, sha256, bytes and so on."""
        return self._sidecar.filter(pc.is_null(self._sidecar.column("reason"))).drop_columns(["reason"])

    @cached_property
    def bad_rows(self) -> pa.Table:
        """The images of the finished shards that could not be read, with the reason of each."""
        return self._sidecar.filter(pc.is_valid(self._sidecar.column("reason")))

    @cached_property
    def _sidecar(self) -> pa.Table:
        try:
            tables = [pq.read_table(shard_folder(self.path, shard) / ROWS) for shard in self._shards]
        except (OSError, pa.ArrowException) as error:
            raise FovealError(
                f"{self.path} is damaged ({error}); foveal extract --verify names what is wrong"
            ) from error
        return pa.concat_tables(tables)

    def read(self, name: str, rows: Sequence[int] | np.ndarray | slice | None = None) -> np.ndarray:
        """Return features as float32, dequantised; coordinates of a PCA stay coordinates (see `projection`).

        Args:
            name: of the array.
            rows: numbers of rows in any order, repeats allowed; a slice; or None for all.

        Returns:
            (len(rows), *shape(name)).

        Raises:
            FovealError: an unknown name, a row outside the store, or a damaged file.
        """
        shape = self.shape(name)
        wanted = self.numbers(rows)
        found = np.empty((len(wanted), *shape), np.float32)
        places = np.searchsorted(self._starts, wanted, side="right") - 1
        for place in np.unique(places):
            here = np.flatnonzero(places == place)
            local = wanted[here] - self._starts[place]
            values, scale = self._stored(place, name)
            chosen = _contiguous(local)
            found[here] = unpack(values[chosen], None if scale is None else scale[chosen])
        return found

    def blocks(self, name: str, *, rows_per_block: int = 8192, reuse: bool = False) -> Iterator[np.ndarray]:
        """Yield the features in order of their rows, float32, `rows_per_block` at a time; the last may be smaller.

        With `reuse` all blocks are the same memory, overwritten when the next is asked for: fresh memory takes longer
        than the reading.
        """
        if rows_per_block < 1:
            raise FovealError(f"rows_per_block={rows_per_block}; it must be at least 1")
        shape, block = self.shape(name), np.empty(0)
        for start in range(0, len(self), rows_per_block):
            size = min(rows_per_block, len(self) - start)
            if not reuse or len(block) < size:
                block = np.empty((size, *shape), np.float32)
            yield self._fill(block[:size], name, start)

    def as_stored(self, name: str) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield an array as it lies on the disk, shard by shard: nothing is read but what is looked at.

        Yields:
            The number of the first row; memory maps of the values (n, *shape(name)), and of the scales (n, ...) of
            int8, else None.
        """
        self.shape(name)
        for place, start in enumerate(self._starts[:-1].tolist()):
            yield start, *self._stored(place, name)

    def projection(self, name: str) -> Projection | None:
        """Return the PCA that an array holds the coordinates of, to map them back; None where it holds features."""
        self.shape(name)
        return Projection(self.path, name) if self.card.is_reduced(name) else None

    def numbers(self, rows: Sequence[int] | np.ndarray | slice | None) -> np.ndarray:
        """Return rows as numbers (n,) int64; FovealError where one is outside the store."""
        if rows is None or isinstance(rows, slice):
            return np.arange(*(rows or slice(None)).indices(len(self)))
        wanted = np.asarray(rows)
        wanted = wanted.astype(np.int64) if wanted.size == 0 else wanted
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise FovealError(f"rows of shape {wanted.shape} and type {wanted.dtype}; give one list of integers")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise FovealError(f"rows from {wanted.min()} to {wanted.max()}; {self.path} has 0 to {len(self) - 1}")
        return wanted.astype(np.int64)

    def _fill(self, block: np.ndarray, name: str, start: int) -> np.ndarray:
        """Read the rows from `start` into a block."""
        done, place = 0, int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < len(block):
            first = start + done - int(self._starts[place])
            here = slice(first, first + len(block) - done)
            values, scale = self._stored(place, name)
            part = block[done : done + len(values[here])]
            unpack(values[here], None if scale is None else scale[here], out=part)
            done, place = done + len(part), place + 1
        return block

    def _stored(self, place: int, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return an array of the place-th finished shard as it lies on the disk, with the scales of int8."""
        shard = self._shards[place]
        return self._array(shard, name), self._array(shard, name + SCALE_SUFFIX) if self.card.dtype == "int8" else None

    def _array(self, shard: int, name: str) -> np.ndarray:
        """Return the memory map of one file, of which the most recent stay open."""
        found = self._open.pop((shard, name), None)  # no thread sees another's half done: each step is one
        if found is None:
            path = shard_folder(self.path, shard) / f"{name}.npy"
            try:
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise FovealError(
                    f"{path} cannot be read ({error}); foveal extract --verify names the damage"
                ) from error
        self._open[shard, name] = found
        while len(self._open) > _MAX_OPEN_FILES:
            self._open.popitem(last=False)
        return found


def _contiguous(numbers: np.ndarray) -> np.ndarray | slice:
    """Return ascending neighbours as a slice, which a memory map gives without copying the pages."""
    if len(numbers) and (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers
