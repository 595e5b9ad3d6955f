"""Int8 for exported graphs: linear layers calibrated on real images, as in foveal's own engine, written for ONNX.

A layer y = W x + b runs as DequantizeLinear(QuantizeLinear(x / s)) times DequantizeLinear(W') plus b', which runtimes
turn into one product of integers; `foveal.engine.quantise` says what s, W' and b' are. All of it is fixed when the
graph is written: nothing depends on the batch.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from foveal.engine.calibrate import MIN_IMAGES, Calibration, calibrate
from foveal.engine.gate import NUM_IMAGES
from foveal.engine.linears import Linear
from foveal.engine.quantise import Quantised
from foveal.export.card import ExportError
from foveal.export.judging import Trial
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.real_images import BATCH_SIZE

if TYPE_CHECKING:
    from foveal.export.graph import GraphWriter

# The file may run on processors without VNNI, which add two products in 16 bits; with 127 these would overflow.
MAX_INTEGER = 63
# From so many images on every fourth is kept from the calibration, for the verdict alone.
SET_ASIDE_FROM = MIN_IMAGES + NUM_IMAGES


class Int8(NamedTuple):
    """What was found for the linear layers of a backbone.

    Attributes:
        trial: the model, and the images for the verdict: those by which layers were chosen, and those set aside.
        layers: those that run in int8, by name; the others, which do most harm, stay in float.
        notes: for the card: what stayed in float, and what the verdict is worth.
    """

    trial: Trial
    layers: dict[str, Quantised]
    notes: list[str]


def calibrated(trial: Trial, *, opset: int) -> Int8:
    """Calibrate the layers of a backbone on most of the images, and keep the others for the verdict.

    Args:
        trial: the model, and at least 16 real images of one size.
        opset: of the graph.

    Raises:
        ExportError: too few images, or it would not pass with half of the layers in float.
    """
    from foveal.export.onnx_files import write_graph

    seen, unseen = _parted(torch.cat(list(trial.batches)))
    key = {
        "kind": "export onnx",
        "model": trial.source.model.identity,
        "images": hashlib.sha256(seen.contiguous().numpy().data).hexdigest(),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"

        def run(layers: Mapping[str, Quantised]) -> OnnxEngine:
            write_graph(trial.source, path, opset=opset, quantised=layers, with_heads=False)
            return OnnxEngine(path)

        found = calibrate(
            trial.source.backbone,
            seen,
            folders=(),
            key=key,
            run=run,
            reference=trial.source.model.engine,
            limit=trial.limit,
            max_integer=MAX_INTEGER,
        )
    if isinstance(found, str):
        raise ExportError(f"int8: {found}; give other or more --images, a lower --limit, or leave out --precision")
    judged = torch.cat([seen[-NUM_IMAGES:], unseen])
    notes = _notes(found, num_unseen=len(unseen))
    return Int8(replace(trial, batches=judged.split(BATCH_SIZE)), dict(found.layers), notes)


def _parted(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images that int8 is made from, and every fourth, which has no part in it; none of a small set."""
    aside = torch.arange(len(images)) % 4 == 3
    if len(images) < SET_ASIDE_FROM:
        aside[:] = False
    return images[~aside], images[aside]


def _notes(found: Calibration, *, num_unseen: int) -> list[str]:
    num_linears = len(found.layers) + len(found.in_float)
    in_float = f", in float: {', '.join(found.in_float)}" if found.in_float else ""
    notes = [f"{len(found.layers)} of {num_linears} linear layers in int8{in_float}"]
    if num_unseen:
        return [*notes, f"{num_unseen} images of the verdict had no part in the calibration"]
    return [
        *notes,
        f"the verdict is on the {NUM_IMAGES} images by which layers were chosen, and may be too good for others; "
        f"from {SET_ASIDE_FROM} images on, a quarter is kept for it alone: give more --images",
    ]


def quantised_linear(write: "GraphWriter", x: ir.Value, layer: Linear, found: Quantised) -> ir.Value:
    """Return a linear layer of `x` in int8: nodes and constants of its name, as `BackboneGraph.linear` has them.

    Further constants: NAME.input_factor (C,), 1 / s; NAME.input_step and NAME.input_zero, of the rounded input;
    NAME.weight_step (O,). NAME.weight is (C, O) int8.
    """
    op, name = write.op, layer.name
    step = (found.high - found.low) / (found.levels - 1)
    zero = round(-found.low / step)  # one of the steps, as `Quantised` has it
    x = op("Mul", x, write.weight(f"{name}.input_factor", 1 / found.input_scale))
    scale = write.array(f"{name}.input_step", np.array(step, np.float32))
    middle = write.array(f"{name}.input_zero", np.array(zero, np.uint8))
    x = op("DequantizeLinear", op("QuantizeLinear", x, scale, middle), scale, middle)
    integers = write.array(f"{name}.weight", np.ascontiguousarray(found.integer_weight(layer.weight).numpy().T))
    weight = op("DequantizeLinear", integers, write.weight(f"{name}.weight_step", found.weight_scale), axis=1)
    return op("Add", op("MatMul", x, weight, name=name), write.weight(f"{name}.bias", found.bias), name=f"{name}.sum")
