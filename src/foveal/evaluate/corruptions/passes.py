"""Passes over several sets: what each found, kept for an interrupted evaluation to go on, and one progress of all."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from foveal.errors import FovealError, WeightsError
from foveal.features.batches import Progress
from foveal.features.store import ENGINE
from foveal.images.imageset import ImageSet
from foveal.tasks.saved_state import load_state, save_state


class Found(NamedTuple):
    """What was found of the readable images of a set: indices (n,) int64 into it, and a row of values for each."""

    indices: Tensor
    values: Tensor


class Kept:
    """What was found so far, in a folder of its own for each thing that is evaluated."""

    def __init__(self, state: Path | None, what: Sequence[str]) -> None:
        key = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
        self._folder = None if state is None else state / key

    @property
    def engine(self) -> Path | None:
        """Where the choice of an engine is kept, so that what goes on is encoded as before."""
        return None if self._folder is None else self._folder / ENGINE

    def found(self, name: str, compute: Callable[[], Found]) -> Found:
        """Return what is kept under a name, else compute and keep it."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{name}.safetensors"
        try:
            saved = load_state(path, stamp=self._folder.name, work="pass")
        except WeightsError as error:
            raise FovealError(f"{path} is damaged; remove it, and that part is computed again") from error
        if saved is not None:
            return Found(**saved.tensors)
        found = compute()
        save_state(path, found._asdict(), stamp=self._folder.name)
        return found

    def remove(self) -> None:
        """Remove what is kept, once nothing is left to compute."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # another evaluation keeps something there
                self._folder.parent.rmdir()


class Passes:
    """Progress over several sets as one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._before = progress, total, 0

    def progress(self, done: int, _: int) -> None:
        """Take the images done of the present set."""
        if self._progress:
            self._progress(self._before + done, self._total)

    def over(self, images: ImageSet, one: Callable[[], Found]) -> Found:
        """Return what one pass over a set gives, and count its images."""
        found = one()
        self._before += len(images)
        self.progress(0, 0)
        return found
