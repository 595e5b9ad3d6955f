"""The resizing of the positional embedding inside an ONNX graph: a small matrix for the rows, one for the columns.

Bicubic interpolation is separable, so a grid of G x G vectors at another size is two matrix products. The entries are
computed from the grid's height and width when the graph runs, by the formulas of `VisionTransformer.position`, with the
cubic kernel of R. Keys, IEEE ASSP 29 (1981), equation 15.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from foveal.export.graph import GraphWriter

# The kernel's parameter a in PyTorch's two ways of bicubic interpolation.
_PLAIN, _ANTIALIASED = -0.75, -0.5
_OFFSET = 0.1


def resize_matrices(
    write: "GraphWriter", grid_h: ir.Value, grid_w: ir.Value, *, side: int, mode: Literal["offset", "antialias"]
) -> tuple[ir.Value, ir.Value]:
    """Return the matrices (grid_h, G) and (grid_w, G) that resize a stored grid of G x G.

    Args:
        write: takes the operations.
        grid_h: (1,) int64.
        grid_w: (1,) int64.
        side: G.
        mode: see `VisionTransformer.position`.
    """
    sizes = [write.op("Cast", size, to=ir.DataType.FLOAT) for size in (grid_h, grid_w)]
    if mode == "antialias":
        rows, columns = (_antialiased(write, size, side) for size in sizes)
        return rows, columns
    # At the stored size the embedding is left as it is; without the offset the matrix is exactly that of no change.
    stored = write.number(float(side))
    native = write.op("And", *(write.op("Equal", size, stored) for size in sizes))
    offset = write.op("Where", native, write.number(0.0), write.number(_OFFSET))
    rows, columns = (_plain(write, size, write.op("Add", size, offset), side) for size in sizes)
    return rows, columns


def _plain(write: "GraphWriter", size: ir.Value, divisor: ir.Value, side: int) -> ir.Value:
    """Return the matrix of four taps around (i + 0.5) G / divisor - 0.5; taps beyond the border count for it."""
    op = write.op
    centres = op("Sub", _centres(write, size, op("Div", write.number(float(side)), divisor)), write.number(0.5))
    base = op("Floor", centres)
    total: ir.Value | None = None
    for number in (-1.0, 0.0, 1.0, 2.0):
        tap = op("Add", base, write.number(number))
        weight = _kernel(write, op("Sub", centres, tap), _PLAIN)
        place = op("Clip", tap, write.number(0.0), write.number(side - 1.0))
        hit = op("Cast", op("Equal", place, _stored(write, side)), to=ir.DataType.FLOAT)
        part = op("Mul", hit, weight)
        total = part if total is None else op("Add", total, part)
    assert total is not None  # there are four taps
    return total


def _antialiased(write: "GraphWriter", size: ir.Value, side: int) -> ir.Value:
    """Return the matrix of a kernel as wide as the shrinking is strong; weights beyond the border are shared out."""
    op = write.op
    scale = op("Div", write.number(float(side)), size)
    middles = op("Add", _stored(write, side), write.number(0.5))
    distance = op("Div", op("Sub", middles, _centres(write, size, scale)), op("Max", scale, write.number(1.0)))
    weights = _kernel(write, distance, _ANTIALIASED)
    return op("Div", weights, op("ReduceSum", weights, write.integers(1), keepdims=1))


def _centres(write: "GraphWriter", size: ir.Value, scale: ir.Value) -> ir.Value:
    """Return (size, 1): (i + 0.5) scale, the middle of each target in units of the stored grid."""
    op = write.op
    targets = op("Range", write.number(0.0), op("Squeeze", size), write.number(1.0))
    column = op("Unsqueeze", targets, write.integers(1))
    return op("Mul", op("Add", column, write.number(0.5)), scale)


def _stored(write: "GraphWriter", side: int) -> ir.Value:
    """Return (1, G): the numbers of the stored rows."""
    return write.array(f"constant.stored_{side}", np.arange(side, dtype=np.float32)[None])


def _kernel(write: "GraphWriter", distance: ir.Value, a: float) -> ir.Value:
    """Return the cubic kernel: one polynomial up to a distance of 1, another up to 2, beyond it 0."""
    op = write.op
    d = op("Abs", distance)
    near = _polynomial(write, d, a + 2, -(a + 3), 0.0, 1.0)
    far = _polynomial(write, d, a, -5 * a, 8 * a, -4 * a)
    outer = op("Where", op("Less", d, write.number(2.0)), far, write.number(0.0))
    return op("Where", op("LessOrEqual", d, write.number(1.0)), near, outer)


def _polynomial(write: "GraphWriter", x: ir.Value, first: float, *others: float) -> ir.Value:
    """Return first x^n + ... by Horner's rule."""
    found = write.op("Mul", x, write.number(first))
    for number, coefficient in enumerate(others):
        found = write.op("Add", found, write.number(coefficient))
        if number < len(others) - 1:
            found = write.op("Mul", found, x)
    return found
