"""Features of an image set as a folder: arrays, one row of Parquet an image, and a card of how they were made."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import foveal
from foveal.backbone.weights import WEIGHTS
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extract import Model, What
from foveal.files import publish
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Mode

KIND = "foveal features"
CARD = "card.json"
_DTYPES: dict[What, Any] = {"cls": np.float32, "registers": np.float16, "patches": np.float16}


def write_features(
    folder: str | Path,
    model: Model,
    images: ImageSet,
    *,
    what: Sequence[What] = ("cls",),
    size: int | None = None,
    fit: Mode = "crop",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Extract the features of a set into a folder, written under a temporary name, synced and renamed.

    The folder holds `cls.npy` (n, D) float32; where asked for `registers.npy` (n, R, D) and `patches.npy`
    (n, grid_h, grid_w, D), float16; `rows.parquet` with the index in the set, uri and label of each row; `card.json`.
    Memory does not grow with the set, beyond its rows.

    Args:
        folder: where; an earlier feature folder is replaced, anything else is left alone.
        model: a loaded model.
        images: the set; images that cannot be decoded are skipped and counted in the card.
        what: which tokens.
        size: see `Model.extract`.
        fit: see `Model.extract`.
        batch_size: images at a time.
        progress: called with (images done, images in all).

    Returns:
        The card.

    Raises:
        FovealError: the folder is something else, cannot be written, or the features overflow float16.
    """
    folder = check_target(folder)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    bad: Counter[str] = Counter()
    kept: list[int] = []
    try:
        staging.mkdir(parents=True)
        writers = {name: _Appender(staging / f"{name}.npy", _DTYPES[name]) for name in what}
        stream = model.stream_set(
            images, what=what, size=size, fit=fit, batch_size=batch_size, progress=progress, bad=bad
        )
        for indices, tokens in stream:
            kept += indices.tolist()
            for name, writer in writers.items():
                writer.append(tokens[name].numpy())
        for writer in writers.values():
            writer.finish()
        rows = images.rows.select(["uri", "label"]).take(pa.array(kept)).append_column("index", pa.array(kept))
        pq.write_table(rows, staging / "rows.parquet")
        card = _card(model, images, size=size, fit=fit, writers=writers, bad=bad)
        (staging / CARD).write_text(json.dumps(card, indent=2) + "\n")
        publish(staging, folder)
    except OSError as error:
        raise FovealError(f"{folder} cannot be written ({error}); free space or choose another place") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def check_target(folder: str | Path) -> Path:
    """Return the absolute path of a folder that features may be written to; FovealError where it is something else."""
    folder = Path(os.path.abspath(folder))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    try:
        if json.loads((folder / CARD).read_text()).get("kind") == KIND:
            return folder
    except (OSError, ValueError, AttributeError):
        pass  # no card, or one that is not ours: refused below
    raise FovealError(f"{folder} exists and is not a feature folder; choose another place or remove it")


class _Appender:
    """Writes an .npy file row by row; the number of rows enters the header at the end."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.shape: tuple[int, ...] | None = None
        self.num_rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Add (b, ...) rows, rounded to the dtype of the file."""
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(rows, dtype=self.dtype)
        if not np.isfinite(rounded).all():
            raise FovealError(f"{self.path.stem} features are not finite in {self.dtype}; the model has diverged")
        if self.shape is None:
            self.shape = rows.shape[1:]
            with open(self.path, "wb") as file:
                self._write_header(file)
        elif self.shape != rows.shape[1:]:
            raise FovealError(
                f"the images give {self.path.stem} of shapes {self.shape} and {rows.shape[1:]}; use fit 'crop'"
            )
        with open(self.path, "ab") as file:
            file.write(rounded.tobytes())
        self.num_rows += len(rows)

    def finish(self) -> None:
        """Put the number of rows into the header; NumPy leaves room there for a first dimension that grows."""
        with open(self.path, "r+b") as file:
            self._write_header(file)

    def _write_header(self, file: BinaryIO) -> None:
        shape = (self.num_rows, *(self.shape or ()))
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)


def _card(
    model: Model, images: ImageSet, *, size: int | None, fit: Mode, writers: dict[What, _Appender], bad: Counter[str]
) -> dict[str, Any]:
    return {
        "kind": KIND,
        "version": 1,
        "model": {"name": model.card.name, "sha256": model.card.sha256.get(WEIGHTS)},
        "preprocessing": asdict(model.preprocessing(size=size, fit=fit)),
        "engine": model.engine.description,
        "tokens": "last block, after the final norm",
        "arrays": {
            w.path.name: {"shape": [w.num_rows, *(w.shape or ())], "dtype": str(w.dtype)} for w in writers.values()
        },
        "image_set": {"hash": images.hash, "num_images": len(images)},
        "bad": dict(bad),
        "versions": {
            "foveal": foveal.__version__,
            "torch": torch.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
        },
    }
