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
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from foveal.engine.calibrate import calibrate
from foveal.engine.gate import NUM_IMAGES
from foveal.engine.linears import Linear, linears_of
from foveal.engine.quantise import Quantised
from foveal.export.card import ExportError
from foveal.export.judging import Trial
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.source import Source

if TYPE_CHECKING:
    from foveal.export.graph import GraphWriter

# The file may run on processors without VNNI, which add two products in 16 bits; with 127 these would overflow.
MAX_INTEGER = 63


def calibrated(trial: Trial, *, opset: int) -> tuple[Trial, dict[str, Quantised]]:
    """Return the layers of a backbone that run in int8; those that do most harm stay in float.

    The trial that is returned keeps the images on which no layer was calibrated, for the verdict.

    Args:
        trial: the model, and at least 16 real images of one size.
        opset: of the graph.

    Raises:
        ExportError: too few images, or it would not pass with half of the layers in float.
    """
    from foveal.export.onnx_files import write_graph

    images = torch.cat(list(trial.batches))
    key = {
        "kind": "export onnx",
        "model": trial.source.model.identity,
        "images": hashlib.sha256(images.contiguous().numpy().data).hexdigest(),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"

        def run(layers: Mapping[str, Quantised]) -> OnnxEngine:
            write_graph(trial.source, path, opset=opset, quantised=layers, with_heads=False)
            return OnnxEngine(path)

        found = calibrate(
            trial.source.backbone,
            images,
            folders=(),
            key=key,
            run=run,
            reference=trial.source.model.engine,
            limit=trial.limit,
            max_integer=MAX_INTEGER,
        )
    if isinstance(found, str):
        raise ExportError(f"int8: {found}; give other or more --images, a lower --limit, or leave out --precision")
    return replace(trial, batches=[images[-NUM_IMAGES:]]), dict(found.layers)


def notes_of(source: Source, layers: Mapping[str, Quantised]) -> list[str]:
    """Return what a card notes of an int8 export: which linear layers stayed in float."""
    if not layers:
        return []
    names = [one.name for number in range(source.backbone.config.depth) for one in linears_of(source.backbone, number)]
    in_float = [name for name in names if name not in layers]
    told = f", in float: {', '.join(in_float)}" if in_float else ""
    return [f"{len(layers)} of {len(names)} linear layers in int8{told}"]


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
