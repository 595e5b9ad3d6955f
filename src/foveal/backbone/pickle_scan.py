"""Following a pickle without running it: what it names, and the storages of tensors that it declares."""

import pickle
import pickletools
import struct
from pathlib import Path
from typing import IO, NamedTuple

from foveal.errors import WeightsError

_STORAGE_BYTES = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage"), 1),
    **dict.fromkeys(("ShortStorage", "HalfStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("IntStorage", "FloatStorage"), 4),
    **dict.fromkeys(("LongStorage", "DoubleStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
_DTYPES = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool complex64 complex128"
_ALLOWED = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}" for name in (*_STORAGE_BYTES, *_DTYPES.split())),
}
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_POPS = {"SETITEM": 2, "APPEND": 1, "BUILD": 1}
# What reading bytes that mean nothing can raise, here and in torch.load.
NONSENSE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, AssertionError,
    RuntimeError, struct.error, pickle.UnpicklingError,
)  # fmt: skip


class StorageRef(NamedTuple):
    """One reference of a pickle to a storage: its name and the bytes that the pickle says it has."""

    key: str
    num_bytes: int


class Forbidden(WeightsError):
    """A pickle that names something other than tensors; `name` is what it names, "module name"."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def scan_pickle(stream: IO[bytes], path: Path) -> list[StorageRef]:
    """Follow one pickle up to its end without calling anything, and return the storages it refers to.

    It understands exactly what `weights_only` understands, so nothing that runs there is passed over here.

    Raises:
        Forbidden: it names something that is not on the list of tensor parts.
        WeightsError: it is no pickle that torch.save writes.
    """
    refs: list[StorageRef] = []
    stack: list[object] = []
    marks: list[list[object]] = []
    memo: dict[object, object] = {}
    try:
        for op, arg, _ in pickletools.genops(stream):
            name = op.name
            if name == "GLOBAL":
                if arg not in _ALLOWED:
                    raise Forbidden(str(arg))
                stack.append(_Global(str(arg)))
            elif name == "MARK":
                marks.append(stack)
                stack = []
            elif name == "TUPLE":
                items, stack = stack, marks.pop()
                stack.append(tuple(items))
            elif name in ("SETITEMS", "APPENDS"):
                stack = marks.pop()
            elif name in _TUPLES:
                count = _TUPLES[name]
                stack[-count:] = [tuple(stack[-count:])]
            elif name in _POPS:
                del stack[-_POPS[name] :]
            elif name in ("REDUCE", "NEWOBJ"):
                callee, _ = stack[-2:]
                if not (isinstance(callee, _Global) and callee.is_function):
                    raise WeightsError(f"{path} was refused unread: its pickle calls something that is no function")
                stack[-2:] = [object()]
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[arg])
            elif name == "BINPERSID":
                refs.append(_storage_of(stack.pop()))
                stack.append(object())
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                stack.append(arg)
            elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
                stack.append(object())
            elif name not in ("PROTO", "STOP"):
                raise WeightsError(
                    f"{path} was refused unread: its pickle uses {name}, which torch.save does not write by default; "
                    "save a plain state dict with torch.save, or safetensors"
                )
    except NONSENSE as error:
        raise WeightsError(f"{path} is damaged: its pickle breaks off or makes no sense; copy it again") from error
    return refs


class _Global(str):
    """A name on the list of tensor parts."""

    __slots__ = ()

    @property
    def is_function(self) -> bool:
        return self.startswith("torch._utils ") or self in ("collections OrderedDict", "torch Size", "torch device")


def _storage_of(reference: object) -> StorageRef:
    """Read ("storage", type, key, location, number of elements[, None]); ValueError when it is something else."""
    if not isinstance(reference, tuple):
        raise ValueError("no reference to a storage")
    kind, storage_type, key, _, numel, *view = reference
    element = _STORAGE_BYTES[str(storage_type).partition(" ")[2]]
    if kind != "storage" or type(numel) is not int or numel < 0 or any(part is not None for part in view):
        raise ValueError("no reference to a storage")
    return StorageRef(str(key), numel * element)
