"""What interrupted work goes on from: one safetensors file that belongs to one model, data and settings."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors.torch import save
from torch import Tensor

from foveal.backbone.weights import load_tensors
from foveal.errors import FovealError, WeightsError
from foveal.files import staging_of, write_atomically

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """Tensors by name, and the words that were written beside them."""

    tensors: dict[str, Tensor]
    words: dict[str, str]


def save_state(path: Path, tensors: Mapping[str, Tensor], *, stamp: str, **words: object) -> None:
    """Write a state, whole or not at all.

    Args:
        path: the file.
        tensors: by name.
        stamp: a hash of everything that decides the numbers.
        words: step, loss and the like; numbers are written so that they are read back to the bit.

    Raises:
        FovealError: it cannot be written.
    """
    written = {"stamp": stamp, **{name: str(value) for name, value in words.items()}}
    try:
        data = save({name: value.contiguous() for name, value in tensors.items()}, written)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, staging=staging_of(path))
    except OSError as error:
        raise FovealError(f"{path} cannot be written ({error}); free space or choose another --out") from error


def load_state(path: Path, *, stamp: str, work: str) -> Saved | None:
    """Return a state, or None where there is no file.

    Args:
        path: the file.
        stamp: as it would be written now.
        work: what goes on, in words, such as "fit".

    Raises:
        FovealError: the state is of other work.
        WeightsError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        tensors = load_tensors(path)
    except WeightsError as error:
        raise WeightsError(f"{path}, the state of a {work}, is damaged; remove it to begin again ({error})") from error
    with safetensors.safe_open(path, framework="pt") as file:
        words = file.metadata() or {}
    if words.get("stamp") != stamp:
        raise FovealError(
            f"{path} is the state of a {work} with another model, data or settings; finish that one, or remove the file"
        )
    if "step" in words:
        logger.info("going on with step %s of %s", words["step"], path)
    return Saved(tensors, words)
