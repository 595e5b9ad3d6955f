"""Pickles of plain data: lists, dicts, strings, numbers and NumPy arrays, read without running anything.

Python's own reader is a machine that calls what a pickle names. This one only follows the opcodes that build data. What
NumPy writes for an array is understood as what it means; any other name is refused.
"""

import math
import pickletools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from foveal.backbone.pickle_scan import NONSENSE
from foveal.errors import FovealError

MAX_BYTES = 256 << 20

_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERAL = re.compile(
    r"(?:BIN|LONG_BIN)?(?:INT|LONG|FLOAT)\d?|(?:SHORT_)?(?:BIN)?(?:STRING|UNICODE|BYTES)8?|BYTEARRAY8"
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")


class _Name(str):
    """A name on the list of what may be called."""

    __slots__ = ()


class _DType:
    """A NumPy number type as a pickle describes it: first its kind and size, then its byte order."""

    def __init__(self, text: str, *_: object) -> None:
        if not _DTYPE.fullmatch(text):
            raise ValueError(f"arrays of type {text}")
        self.dtype = np.dtype(text)

    def build(self, state: tuple[object, ...]) -> None:
        order = str(state[1])
        if order not in ("<", ">", "|", "="):
            raise ValueError("a byte order that is none")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array(list[object]):
    """An array on its way: a list, filled when its state comes."""

    def build(self, state: tuple[object, ...]) -> None:
        *_, shape, dtype, column_major, data = state
        self[:] = _values(data, dtype, shape, "F" if column_major else "C")


def read_plain_pickle(path: Path) -> object:
    """Read a pickle that holds nothing but plain data.

    Args:
        path: the file, of any protocol, written by Python 2 or 3.

    Returns:
        Lists, tuples, dicts, strings, bytes, numbers, None; an array comes as nested lists.

    Raises:
        FovealError: it is missing, too large, damaged, or names anything else; nothing of it has run.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise FovealError(f"{path} has {size} bytes; pickles of at most {MAX_BYTES} are read; write it as JSON")
        data = path.read_bytes()
    except OSError as error:
        raise FovealError(f"{path} cannot be read ({error.strerror}); check the path") from error
    try:
        return _follow(pickletools.genops(data), path)
    except NONSENSE as error:
        raise FovealError(f"{path} is damaged or no pickle of plain data ({error}); copy it again") from error


def _follow(opcodes: Iterator[tuple[pickletools.OpcodeInfo, object, int | None]], path: Path) -> object:
    """Follow the opcodes to the end of the pickle and return what is then on the stack."""
    stack: list[object] = []
    marks: list[list[object]] = []
    memo: dict[object, object] = {}
    for op, arg, _ in opcodes:
        name = op.name
        if _LITERAL.fullmatch(name):
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            _gather(name, stack, items)
        elif name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            items = stack[-count:]
            del stack[-count:]
            _gather(f"{name}S", stack, items)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else arg] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            named = " ".join(map(str, (stack.pop(-2), stack.pop()))) if name == "STACK_GLOBAL" else str(arg)
            stack.append(_allowed(named, path))
        elif name == "REDUCE":
            stack[-2:] = [_rebuild(stack[-2], stack[-1])]
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(built := stack[-1], _DType | _Array) or not isinstance(state, tuple):
                raise ValueError("a state for something that has none")
            built.build(state)
        elif name == "STOP":
            return stack[-1]
        elif name not in ("PROTO", "FRAME", "POP"):
            raise FovealError(f"{path} was refused: its pickle uses {name}, which plain data does not need")
    raise ValueError("it has no end")


def _gather(name: str, stack: list[object], items: list[object]) -> None:
    """Make a container of the items since the last mark, or add them to the one before it."""
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "LIST":
        stack.append(items)
    elif name == "APPENDS" and isinstance(stack[-1], list):
        stack[-1].extend(items)
    elif name == "DICT":
        stack.append(_pairs(items))
    elif name == "SETITEMS" and isinstance(stack[-1], dict):
        stack[-1].update(_pairs(items))
    else:
        raise ValueError("items for something that holds none")


def _pairs(items: list[object]) -> dict[object, object]:
    if not all(isinstance(key, str | bytes | int | float | None) for key in items[::2]):
        raise ValueError("a key that is neither text nor number")  # hashing tuples of tuples can take for ever
    return dict(zip(items[::2], items[1::2], strict=True))


def _allowed(name: str, path: Path) -> _Name:
    short = name.replace("numpy._core.", "numpy.core.")
    if short not in _REBUILD and short != "numpy ndarray":
        dotted = name.replace(" ", ".")
        raise FovealError(
            f"{path} was refused: its pickle asks for {dotted}, which is no plain data and could run code; "
            "write it as JSON where you trust it"
        )
    return _Name(short)


def _rebuild(name: object, arguments: object) -> object:
    if not isinstance(name, _Name) or name not in _REBUILD or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is no function")
    return _REBUILD[name](*arguments)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes as {encoding}")
    return text.encode("latin-1")


def _scalar(dtype: object, data: object) -> object:
    return _values(data, dtype, (1,), "C")[0]


def _values(data: object, dtype: object, shape: object, order: object) -> list[object]:
    """Return the numbers of an array as nested lists; ValueError where they do not add up."""
    raw = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _DType) or not isinstance(shape, tuple):
        raise ValueError("an array that is none")
    if not shape or order not in ("C", "F") or math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} with {len(raw)} bytes")
    listed: list[object] = np.frombuffer(raw, dtype.dtype).reshape(shape, order=order).tolist()
    return listed


_REBUILD: dict[str, Callable[..., object]] = {
    "numpy.core.multiarray _reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray scalar": _scalar,
    "numpy.core.numeric _frombuffer": _values,
    "numpy dtype": _DType,
    "_codecs encode": _encoded,
    "__builtin__ bytes": lambda: b"",
}
