"""Features as they lie on the disk: float32, float16, or int8 with one scale for each vector."""

from typing import Literal, get_args

import numpy as np
import torch

from foveal.errors import FovealError, nearest

Dtype = Literal["float32", "float16", "int8"]
SCALE_SUFFIX = ".scale"


def check_dtype(dtype: str) -> None:
    """Refuse a type that features are not stored in."""
    if dtype not in get_args(Dtype):
        near = nearest(dtype, get_args(Dtype))
        raise FovealError(f"dtype={dtype!r}; allowed are {', '.join(get_args(Dtype))}{near}")


def pack(values: np.ndarray, *, dtype: Dtype, name: str) -> dict[str, np.ndarray]:
    """Return the arrays that hold some features, by name.

    int8 is symmetric, with one float32 scale for each vector s = max |x| / 127: x is about s * round(x / s). A
    vector of zeros has scale 0.

    Args:
        values: (n, ..., D) float32.
        dtype: what to round to.
        name: of the features; the scales (n, ...) are called `name` + ".scale".

    Raises:
        FovealError: the features are not finite, or beyond the range of float16.
    """
    if not np.isfinite(values).all():
        raise FovealError(f"{name} features hold NaN or infinity; the model has diverged")
    if dtype == "int8":
        scale = np.abs(values).max(axis=-1).astype(np.float32) / np.float32(127)
        divisor = np.where(scale > 0, scale, np.float32(1))[..., None]
        codes = np.clip(np.rint(values / divisor), -127, 127).astype(np.int8)
        return {name: codes, name + SCALE_SUFFIX: scale}
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, dtype=dtype)
    if not np.isfinite(rounded).all():
        raise FovealError(f"{name} features reach {np.abs(values).max():.3g}, beyond {dtype}; choose int8 or float32")
    return {name: rounded}


def unpack(values: np.ndarray, scale: np.ndarray | None, *, out: np.ndarray | None = None) -> np.ndarray:
    """Return features (n, ..., D) float32 from what `pack` made of them, in `out` (float32, their shape) if given."""
    out = np.empty(values.shape, np.float32) if out is None else out
    # PyTorch widens float16 in a third of NumPy's time, and by DLPack it takes read-only maps without a copy.
    stored, widened = torch.from_dlpack(values), torch.from_dlpack(out)
    if scale is None:
        widened.copy_(stored)
    else:
        torch.mul(stored, torch.from_dlpack(scale)[..., None], out=widened)
    return out


def bytes_of(shape: tuple[int, ...], dtype: Dtype) -> int:
    """Return the bytes that features of one image take, scales included."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return size + (4 * int(np.prod(shape[:-1])) if dtype == "int8" else 0)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each vector of (..., D) with its counterpart, float64; 1 where both are zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    dot = np.einsum("...d,...d->...", a, b)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = ~a.any(axis=-1) & ~b.any(axis=-1)
    return np.where(both_zero, 1.0, dot / np.where(norms > 0, norms, 1.0))
