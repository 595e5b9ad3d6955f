"""The vectors that curation works on: one array of a feature store, or an .npy file, whole or some of its rows.

Shapes: N rows, D width.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from foveal.curate.stage import TOKEN
from foveal.errors import FovealError
from foveal.features.database import Database
from foveal.features.lookup import identity_of, vector_name
from foveal.features.store import FeatureStore
from foveal.files import sha256_of
from foveal.images.imageset import ImageSet

_SHORTEST = 1e-12


class Vectors:
    """Rows of unit length, read where they are asked for; opened from paths, so that workers open the same.

    Attributes:
        path: of the feature store, or of an .npy file (N, D).
        token: which array of the store; None for a file.
        rows: (N,) int64, the rows of the store or file that these are, ascending; None is all.
        num_rows: N.
        width: D.
    """

    def __init__(self, path: str | Path, *, token: str | None = None, rows: str | Path | None = None) -> None:
        """Open vectors.

        Args:
            path: a feature store, or an .npy file (N, D) of a float type.
            token: which array of the store; None takes "cls", or the only one with one vector an image.
            rows: an .npy file of row numbers, int64, ascending and distinct; None takes all.

        Raises:
            FovealError: there is nothing of the kind, it is damaged or unfinished, or has no rows.
        """
        self.path = Path(os.path.abspath(path))
        self.rows_path = None if rows is None else Path(os.path.abspath(rows))
        self.store = None if self.path.suffix == ".npy" else FeatureStore.open(self.path)
        if self.store is not None and not self.store.complete:
            raise FovealError(f"{self.path} is unfinished; run its foveal extract again first")
        self.token = None if self.store is None else vector_name(self.store, token)
        self.array = None if self.store is not None else _mapped(self.path)
        total = len(self.store) if self.store is not None else len(self.array)  # type: ignore[arg-type]
        self.rows = None if rows is None else _row_numbers(Path(rows), total)
        self.num_rows = total if self.rows is None else len(self.rows)
        self.width = self.store.shape(self.token)[0] if self.store and self.token else int(self.array.shape[1])  # type: ignore[union-attr]
        if self.num_rows == 0:
            raise FovealError(f"{self.path} has no rows to work on; extract the features of at least one image")

    @classmethod
    def of_sources(cls, sources: Mapping[str, str], name: str = "vectors") -> "Vectors":
        """Open what `sources` gave, in a worker."""
        return cls(sources[name], token=sources.get(name + TOKEN), rows=sources.get(f"{name}.rows"))

    def sources(self, name: str = "vectors") -> dict[str, str]:
        """Return the paths by which `of_sources` opens the same."""
        found = {name: str(self.path)}
        if self.token is not None:
            found[name + TOKEN] = self.token
        if self.rows_path is not None:
            found[f"{name}.rows"] = str(self.rows_path)
        return found

    @cached_property
    def hash(self) -> str:
        """The sha256 of all that these vectors are: stamp and contents of the store, or the file, and the rows."""
        if self.store is not None and self.token is not None:
            what: Any = identity_of(self.store, self.token)
        else:
            what = sha256_of(self.path)
        rows = None if self.rows is None else hashlib.sha256(self.rows.tobytes()).hexdigest()
        return hashlib.sha256(json.dumps([what, rows], sort_keys=True).encode()).hexdigest()

    @cached_property
    def descriptor(self) -> dict[str, Any]:
        """What vectors must agree in to be compared: model, preprocessing, token and width."""
        if self.store is None:
            return {"width": self.width}
        stamp = self.store.stamp
        return {
            "model": stamp["model"],
            "preprocessing": stamp["preprocessing"],
            "token": self.token,
            "width": self.width,
        }

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start to stop - 1 as (n, D) float32 of length 1; a row of zeros stays one.

        Raises:
            FovealError: a row holds NaN or infinity; the message names the image.
        """
        if self.rows is not None:
            return self.take(np.arange(start, stop))
        if self.store is not None and self.token is not None:
            found = self.store.read(self.token, slice(start, stop))
        else:
            found = np.array(self.array[start:stop], np.float32)  # type: ignore[index]
        return self._unit(found, np.arange(start, stop))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return some rows, in the order asked for, as `read` does."""
        wanted = self.numbers(numbers)
        if self.store is not None and self.token is not None:
            found = self.store.read(self.token, wanted)
        else:
            found = np.asarray(self.array[wanted], np.float32)  # type: ignore[index]
        return self._unit(found, numbers)

    def database(self, start: int = 0, stop: int | None = None) -> Database:
        """Return rows start to stop - 1, numbered from 0, as what `foveal.features.search` searches in."""
        stop = self.num_rows if stop is None else stop

        def blocks(size: int) -> Iterator[Tensor]:
            for first in range(start, stop, size):
                yield torch.from_numpy(self.read(first, min(first + size, stop)))

        def read(numbers: np.ndarray) -> Tensor:
            return torch.from_numpy(self.take(numbers + start))

        return Database(num_rows=stop - start, width=self.width, blocks=blocks, read=read)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Return which rows of the store or file these are, (n,) int64: what `rows=` opens them by."""
        return places if self.rows is None else self.rows[places]

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Return where rows of the store or file are among these, (n,) int64: the inverse of `numbers`."""
        return numbers if self.rows is None else np.searchsorted(self.rows, numbers)

    def uri(self, row: int) -> str:
        """Return the image of a row, or its number in a file."""
        number = row if self.rows is None else int(self.rows[row])
        return f"row {number}" if self.store is None else str(self.store.rows.column("uri")[number].as_py())

    def images(self) -> ImageSet:
        """Return the images of all rows, in their order, with sha256, width and height.

        For a file without a store these are names only, "row 0" and so on.
        """
        if self.store is None:
            numbers = np.arange(self.num_rows) if self.rows is None else self.rows
            return ImageSet(pa.table({"uri": [f"row {number}" for number in numbers]}), root=self.path.parent)
        rows = self.store.rows if self.rows is None else self.store.rows.take(pa.array(self.rows))
        return ImageSet(rows.drop_columns(["row", "id"]), root=Path(self.store.card.image_set["root"]))

    def _unit(self, found: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        lengths = np.sqrt(np.einsum("ij,ij->i", found, found, dtype=np.float64))
        if not np.isfinite(lengths).all():
            row = int(numbers[np.flatnonzero(~np.isfinite(lengths))[0]])
            raise FovealError(
                f"{self.path}: the vector of {self.uri(row)} holds NaN or infinity; extract it again with a model that "
                "has not diverged"
            )
        inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > _SHORTEST)
        found *= inverse[:, None].astype(np.float32)
        return found


def check_same_descriptor(one: Vectors, other: Vectors) -> None:
    """Refuse to compare vectors of different models or preprocessing.

    Raises:
        FovealError: names every difference.
    """
    left, right = one.descriptor, other.descriptor
    differences = [
        f"{key} is {left.get(key)} and {right.get(key)}"
        for key in sorted({*left, *right})
        if _comparable(key, left.get(key)) != _comparable(key, right.get(key))
    ]
    if differences:
        raise FovealError(
            f"{one.path} and {other.path} hold different descriptors: {'; '.join(differences)}. Extract both with the "
            "same model, size and token"
        )


def _comparable(key: str, value: Any) -> Any:
    return value["sha256"] if key == "model" and value is not None else value


def _mapped(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FovealError(f"{path} cannot be read ({error}); give a feature store, or an .npy file") from error
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] == 0:
        raise FovealError(f"{path} holds {array.shape} of {array.dtype}; give (rows, width) of a float type")
    return array


def _row_numbers(path: Path, total: int) -> np.ndarray:
    try:
        rows: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FovealError(f"{path}, the rows to work on, cannot be read ({error})") from error
    is_list = rows.ndim == 1 and rows.dtype.kind in "iu"
    rows = rows.astype(np.int64) if is_list else rows  # unsigned numbers that fall have a positive difference
    if not is_list or (len(rows) and (rows[0] < 0 or rows[-1] >= total or (np.diff(rows) < 1).any())):
        raise FovealError(f"{path} must list row numbers from 0 to {total - 1}, ascending and distinct")
    return rows
