"""JSON and XML from elsewhere: read with care, and numbers in them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from foveal.errors import FovealError

_LARGEST = 1e12  # no picture has so many pixels; what is computed with it stays finite


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FovealError: it cannot be read or is no JSON; NaN and Infinity are none.
    """
    try:
        return json.loads(read_bytes(path), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FovealError(f"{path} is no JSON ({error}); export it again") from error


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file. One that declares a document type is refused: its entities may grow to any size.

    Raises:
        FovealError: it cannot be read or is no such XML.
    """
    return parse_xml(read_bytes(path), where=str(path))


def parse_xml(content: bytes, *, where: str) -> ElementTree.Element:
    """Return the root of XML; as `read_xml`, for what lies in no file."""

    def refuse(*_declared: object) -> NoReturn:
        raise FovealError(f"{where} declares a document type, which annotations do not need; export it again")

    tree = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: encodings it does not know
        raise FovealError(f"{where} is no XML ({error}); export it again") from error
    return tree.close()


def read_bytes(path: Path) -> bytes:
    """Return what a file holds; FovealError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FovealError(f"{path} cannot be read ({error.strerror}); check the path") from error


def field(of: Any, name: str, kind: type | tuple[type, ...], *, where: str) -> Any:
    """Return a field of an object in JSON.

    Args:
        of: the object.
        name: of the field.
        kind: what it must be.
        where: names the object in errors.

    Raises:
        FovealError: no object, no such field, or one of another kind.
    """
    if not isinstance(of, Mapping) or name not in of:
        raise FovealError(f"{where} has no {name}; export it again")
    value = of[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, (int, float))):
        raise FovealError(f"{where} has {name} = {str(value)[:40]!r}, which is of another kind; export it again")
    return value


def number(value: Any, *, where: str) -> float:
    """Return a finite number of a size that pictures have, given as one or as text.

    Raises:
        FovealError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise FovealError(f"{where}: {str(value)[:40]!r} is no number; correct it") from error
    if not math.isfinite(found):
        raise FovealError(f"{where}: {value} is not finite; correct it")
    if abs(found) > _LARGEST:
        raise FovealError(f"{where}: {value} is too large for anything on a picture; correct it")
    return found


def points(values: Any, *, where: str) -> np.ndarray:
    """Return places (N, 2) float64, given as a list of x and y each.

    Raises:
        FovealError: it is none.
    """
    if not isinstance(values, list) or not all(isinstance(place, list) and len(place) == 2 for place in values):
        raise FovealError(f"{where}: points that are no list of x and y; export it again")
    found = [[number(part, where=where) for part in place] for place in values]
    return np.array(found, np.float64).reshape(-1, 2)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not finite")
