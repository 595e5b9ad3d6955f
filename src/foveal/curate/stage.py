"""A stage of curation: a folder that is resumed by what decides its result, and is an image set when it is done.

    STAGE/stage.json                       kind, settings, hashes of what is read: never another in the same folder
    STAGE/shards/STEP/00000.safetensors    what one shard of one step has found, with the sha256 of its contents
    STAGE/part-00000.parquet, imageset.json  the images kept: `ImageSet.open(STAGE)` reads them
    STAGE/rows.npy                         of stages that read vectors: rows of the store, kept, for `Vectors(rows=)`
    STAGE/removed.parquet                  the images that the stage removed, why, and what for
    STAGE/summary.json                     counts; written last: the stage is finished when it is there

Every step is a function of (folder, shard) that reads earlier steps and inputs and writes one file, so that processes,
batch jobs and clusters can share the shards of a step.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
from safetensors.numpy import load, save

from foveal.errors import FovealError
from foveal.files import remove_abandoned, staging_of, write_atomically, write_new
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)

KIND, VERSION = "foveal curation stage", 2
CARD, SHARDS, SUMMARY, REMOVED, ROWS = "stage.json", "shards", "summary.json", "removed.parquet", "rows.npy"
TOKEN = ".token"
_SEAL = "foveal"
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I16": np.int16, "I32": np.int32, "I64": np.int64}
REMOVED_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a short, stable word to count by
        pa.field("detail", pa.string()),  # in words: what was seen and what is allowed
        pa.field("kept_uri", pa.string()),  # the image that it was removed for, where there is one
        pa.field("score", pa.float64()),  # similarity or distance to that one
    ]
)


@dataclass(frozen=True)
class Stage:
    """A stage's folder; made by `open_stage`, in workers by `read_stage`.

    Attributes:
        folder: where.
        name: such as "dedup".
        settings: what was asked for; any JSON. Decides the result, with `inputs`.
        inputs: by name the hash of everything that is read.
        sources: by name where that lies; may change between runs, the hashes may not.
    """

    folder: Path
    name: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)

    @cached_property
    def stamp(self) -> str:
        """The sha256 of everything that decides the result."""
        what = {"stage": self.name, "settings": self.settings, "inputs": self.inputs}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def path(self, step: str, shard: int) -> Path:
        """Return the file of one shard of a step."""
        return self.folder / SHARDS / step / f"{shard:05d}.safetensors"

    def has(self, step: str, shard: int = 0) -> bool:
        """Tell whether one shard of a step is there."""
        return self.path(step, shard).is_file()

    def missing(self, step: str, num_shards: int) -> list[int]:
        """Return the numbers of the shards of a step that are not there yet, ascending."""
        return [shard for shard in range(num_shards) if not self.has(step, shard)]

    def save(self, step: str, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write what one shard of a step has found, whole or not at all.

        Raises:
            FovealError: it cannot be written; finished shards stay.
        """
        path = self.path(step, shard)
        plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        data = save(plain, {_SEAL: f"{self.stamp} {_digest(plain)}"})  # one word: the order of several is random
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, staging=staging_of(path))
        except OSError as error:
            raise FovealError(
                f"{path} cannot be written ({error}); free space and run the same command again: what is finished stays"
            ) from error

    def load(self, step: str, shard: int) -> dict[str, np.ndarray]:
        """Return what `save` wrote, sorted by name: the reader of these files gives another order each time.

        Raises:
            FovealError: the file is missing, damaged or of other settings.
        """
        path = self.path(step, shard)
        redo = f"remove {path} and run the same command again"
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                stamp, _, digest = (file.metadata() or {}).get(_SEAL, "").partition(" ")
            arrays = load(path.read_bytes())
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise FovealError(f"{path} is damaged or missing ({error}); {redo}") from error
        if stamp != self.stamp:
            raise FovealError(f"{path} was made with other settings or inputs; {redo}")
        if digest != _digest(arrays):
            raise FovealError(f"{path} is damaged: its contents are not those that were written; {redo}")
        return dict(sorted(arrays.items()))

    def mapped(self, step: str, shard: int, name: str) -> np.ndarray:
        """Return one array that `save` wrote as a memory map, of which only what is used is read.

        Its contents are not compared with what was written; `load` does that.

        Raises:
            FovealError: the file is missing, cut or of other settings.
        """
        path = self.path(step, shard)
        try:
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            said, seal = header[name], header["__metadata__"][_SEAL]
            array: np.ndarray = np.memmap(
                path, _DTYPES[said["dtype"]], "c", 8 + size + said["data_offsets"][0], tuple(said["shape"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FovealError(
                f"{path} is damaged or missing ({error!r}); remove it and run the same command again"
            ) from error
        if not seal.startswith(self.stamp):
            raise FovealError(
                f"{path} was made with other settings or inputs; remove it and run the same command again"
            )
        return array

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished stage says of itself; None while it is not."""
        path = self.folder / SUMMARY
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        except (OSError, ValueError) as error:
            raise FovealError(
                f"{path} is damaged ({error}); remove it and run the same command again: finished shards stay"
            ) from error

    def finish(
        self, kept: ImageSet, removed: pa.Table, counts: Mapping[str, Any], *, rows: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Write the images kept and removed and, last, the summary; return it.

        Args:
            kept: the images kept.
            removed: rows of `REMOVED_SCHEMA`; further columns are allowed.
            counts: facts of the stage; any JSON. num_kept, num_removed and by_reason are added.
            rows: (num_kept,) int64, of the store or file that the stage read, also where it read some of its rows
                only; ascending.
        """
        reasons = removed.column("reason").value_counts().to_pylist() if len(removed) else []
        summary = {
            "num_kept": len(kept),
            "num_removed": len(removed),
            "by_reason": {one["values"]: one["counts"] for one in sorted(reasons, key=lambda one: str(one["values"]))},
            **counts,
        }
        try:
            kept.save_in(self.folder)
            if rows is not None:
                array = io.BytesIO()
                np.save(array, rows.astype(np.int64))
                write_atomically(self.folder / ROWS, array.getvalue(), staging=staging_of(self.folder / ROWS))
            staging = staging_of(self.folder / REMOVED)
            pq.write_table(removed, staging)
            staging.replace(self.folder / REMOVED)
            path = self.folder / SUMMARY
            write_atomically(path, json.dumps(summary, indent=2) + "\n", staging=staging_of(path))
        except OSError as error:
            raise FovealError(
                f"{self.folder} cannot be written ({error}); free space and run the same command again: what is "
                "finished stays"
            ) from error
        return summary

    @property
    def rows(self) -> Path:
        """Where a finished stage that reads vectors has written which rows it kept."""
        return self.folder / ROWS

    def images(self) -> ImageSet:
        """Return the images kept by a finished stage."""
        return ImageSet.open(self.folder)

    def removed(self) -> pa.Table:
        """Return the images removed by a finished stage, with the columns of `REMOVED_SCHEMA` at least."""
        path = self.folder / REMOVED
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise FovealError(
                f"{path} is damaged or missing ({error}); remove {self.folder / SUMMARY} and run the same command again"
            ) from error


def open_stage(
    folder: str | Path,
    name: str,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    sources: Mapping[str, str | Path],
) -> Stage:
    """Start a stage, or continue one of the same settings and inputs.

    Args:
        folder: absent, empty, or that of the same stage.
        name: of the stage.
        settings: any JSON.
        inputs: hashes by name.
        sources: paths by name; what ends with `TOKEN` is the name of an array, and stays.

    Raises:
        FovealError: the folder is something else, or a stage with other settings or inputs, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    plain = json.loads(json.dumps(dict(settings)))
    paths = {name: str(path) if name.endswith(TOKEN) else os.path.abspath(path) for name, path in sources.items()}
    stage = Stage(folder, name, plain, dict(inputs), paths)
    if folder.exists() and not (folder / CARD).is_file() and (not folder.is_dir() or any(_visible(folder))):
        raise FovealError(f"{folder} exists and is not a stage of curation; choose another place or remove it")
    card = {"kind": KIND, "version": VERSION, "stage": name, "settings": plain, "inputs": stage.inputs}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *(folder / SHARDS).glob("*")):
            remove_abandoned(place)
        text = json.dumps({**card, "sources": paths}, indent=2) + "\n"
        if not write_new(folder / CARD, text):
            before = read_stage(folder)
            _check_same(before, stage)
            if before.sources != stage.sources:
                write_atomically(folder / CARD, text, staging=staging_of(folder / CARD))
    except OSError as error:
        raise FovealError(f"{folder} cannot be written ({error}); free space or choose another place") from error
    return stage


def read_stage(folder: str | Path) -> Stage:
    """Return the stage of a folder; FovealError where it is none or its card is damaged."""
    path = Path(folder) / CARD
    if not path.is_file():
        raise FovealError(f"{folder} is not a stage of curation: it has no {CARD}")
    try:
        card = json.loads(path.read_text())
        kind, version = card["kind"], card["version"]
        stage = Stage(Path(folder), card["stage"], card["settings"], card["inputs"], card["sources"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FovealError(f"{path} is damaged ({error!r}); remove {folder} and run the stage again") from error
    if (kind, version) != (KIND, VERSION):
        raise FovealError(
            f"{path} says {kind!r}, version {version!r}; this foveal reads {KIND!r}, {VERSION}: remove {folder} and "
            "run the stage again, or choose another place"
        )
    return stage


def removed_table(rows: Mapping[str, Any]) -> pa.Table:
    """Return a table of `REMOVED_SCHEMA` from columns by name; those left out are null."""
    size = len(rows["uri"])
    return pa.table(
        [pa.array(rows.get(one.name, [None] * size), one.type) for one in REMOVED_SCHEMA], schema=REMOVED_SCHEMA
    )


def _check_same(before: Stage, now: Stage) -> None:
    if before.stamp == now.stamp:
        return
    if before.name != now.name:
        raise FovealError(f"{now.folder} is a stage {before.name!r}, not {now.name!r}; choose another --out")
    changed = [
        f"{key} is {held.get(key)!r} there and {wanted.get(key)!r} now"
        for held, wanted in ((before.settings, now.settings), (before.inputs, now.inputs))
        for key in sorted({*held, *wanted})
        if held.get(key) != wanted.get(key)
    ]
    raise FovealError(
        f"{now.folder} was made with other settings or inputs: {'; '.join(changed)}. Repeat its command to continue "
        "it, or choose another --out"
    )


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
