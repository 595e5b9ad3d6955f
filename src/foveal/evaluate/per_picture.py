"""What test pictures give one by one, kept in a file from which an interrupted measurement goes on."""

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from foveal.features.batches import Progress
from foveal.tasks.predict import Predictor
from foveal.tasks.samples import DenseSet
from foveal.tasks.saved_state import load_state, save_state


def rows_of_pictures(
    count: int,
    row_of: Callable[[int], np.ndarray],
    *,
    state: Path | None = None,
    stamp: str = "",
    save_every_s: float = 60.0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return a row of numbers for each of some pictures, (count, ...).

    Args:
        count: of the pictures.
        row_of: gives the row of a picture by its number; all rows have one shape and type.
        state: file into which rows are saved now and then and when something ends the loop; it goes on from there. It
            stays when all is done.
        stamp: of everything that decides the rows.
        save_every_s: seconds between two saves.
        progress: called with (pictures done, pictures in all).

    Raises:
        FovealError: a state with another stamp.
        WeightsError: a damaged state.
    """
    stamp = sha256(stamp.encode()).hexdigest()
    rows = [] if state is None else _restored(state, stamp)
    num_saved, saved_at = len(rows), time.monotonic()
    try:
        for index in range(len(rows), count):
            rows.append(row_of(index))
            if progress:
                progress(index + 1, count)
            if state is not None and time.monotonic() - saved_at >= save_every_s:
                _save(state, rows, stamp)
                num_saved, saved_at = len(rows), time.monotonic()
    finally:
        if state is not None and len(rows) > num_saved:
            _save(state, rows, stamp)
    return np.stack(rows)


def measured_with(predictor: Predictor, test: DenseSet) -> str:
    """Return what decides a measurement beside its settings: the model, the head and the pictures."""
    return f"{predictor.model.identity} {predictor.head.identity} {test.hash}"


def _save(path: Path, rows: list[np.ndarray], stamp: str) -> None:
    save_state(path, {"rows": torch.from_numpy(np.stack(rows))}, stamp=stamp, step=len(rows))


def _restored(path: Path, stamp: str) -> list[np.ndarray]:
    found = load_state(path, stamp=stamp, work="measurement")
    return [] if found is None else list(found.tensors["rows"].numpy())
