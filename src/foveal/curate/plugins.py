"""Functions of the user that judge or change one image, such as a classifier of unsafe content or a blurrer of faces.

foveal ships none. A function gets one image at a time, never two at once in a process.
"""

import hashlib
import importlib
import importlib.util
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from foveal.errors import FovealError
from foveal.files import sha256_of


@dataclass(frozen=True)
class PlugIn:
    """A function of the user; made by `load_plugin`.

    Attributes:
        name: MODULE:FUNCTION or FILE.py:FUNCTION, by which a worker loads the same.
        sha256: of its file: another text is another function.
        function: it.
    """

    name: str
    sha256: str
    function: Callable[[np.ndarray], Any]
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def score(self, image: np.ndarray, uri: str) -> float:
        """Return what a scorer says of an image (H, W, 3) uint8.

        Raises:
            FovealError: it failed, or the score is no number from 0 to 1.
        """
        found = self._call(image.copy(), uri)  # what comes after it sees the image as it was
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise FovealError(f"{self.name} gave {found!r} for {uri}; a score is a number from 0 to 1")
        return value

    def transform(self, image: np.ndarray, uri: str) -> np.ndarray | None:
        """Return what a transform makes of an image (H, W, 3) uint8, or None where it leaves it as it is.

        Raises:
            FovealError: it failed, or gave something else.
        """
        before = image.copy()
        found = self._call(image, uri)
        if found is None:
            return None
        array = np.asarray(found)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise FovealError(
                f"{self.name} gave {array.dtype} of shape {array.shape} for {uri}; give uint8 of shape (H, W, 3), or "
                "None to leave the image as it is"
            )
        return None if np.array_equal(array, before) else array

    def _call(self, image: np.ndarray, uri: str) -> Any:
        try:
            with self._lock:
                return self.function(image)
        except Exception as error:  # whatever another's code does, with the image that it did it on
            raise FovealError(
                f"{self.name} failed for {uri} ({type(error).__name__}: {error}); repair it and run the same command "
                "again: what is finished stays"
            ) from error


def load_plugin(name: str) -> PlugIn:
    """Import a function by MODULE:FUNCTION or FILE.py:FUNCTION.

    Raises:
        FovealError: there is none of that name, or its file cannot be imported.
    """
    place, colon, function_name = name.rpartition(":")
    if not colon or not place or not function_name:
        raise FovealError(f"{name!r} names no function; write MODULE:FUNCTION, or FILE.py:FUNCTION")
    is_file = place.endswith(".py")
    place = str(Path(place).absolute()) if is_file else place
    try:
        module = _of_file(Path(place)) if is_file else importlib.import_module(place)
    except Exception as error:  # whatever another's code does when it is imported
        raise FovealError(f"{place} cannot be imported ({type(error).__name__}: {error}); repair it") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise FovealError(f"{place} has no function {function_name!r}; it has {', '.join(functions) or 'none'}")
    source = getattr(module, "__file__", None)
    digest = sha256_of(Path(source)) if source else ""
    return PlugIn(f"{place}:{function_name}", digest, function)


def _of_file(path: Path) -> ModuleType:
    name = f"foveal_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module
