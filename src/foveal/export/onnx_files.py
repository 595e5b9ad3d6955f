"""The files of an ONNX export: the backbone's graph with its heads inside, or each head as a graph of its own.

Shapes: B images, D width, R registers.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from foveal.engine.quantise import Quantised
from foveal.export.card import Port
from foveal.export.graph import BackboneGraph
from foveal.export.head_graph import Read, join, output_shape, trace
from foveal.export.source import Source

# A file of ONNX holds less than 2 GiB; beyond that weights go into one file beside it.
MAX_BYTES_INSIDE = 1_900_000_000


@torch.no_grad()
def write_graph(
    source: Source,
    path: Path,
    *,
    opset: int,
    apart: bool = False,
    with_heads: bool = True,
    quantised: Mapping[str, Quantised] | None = None,
    max_bytes_inside: int = MAX_BYTES_INSIDE,
) -> tuple[list[Port], list[Port]]:
    """Write the graph of a model to a file, its larger weights to a second one where one cannot hold them.

    Args:
        source: the model and its heads.
        path: of the graph; what else is written lies beside it.
        opset: of the operators.
        apart: write each head to NAME.onnx beside it, and let the backbone give out what they read.
        with_heads: False leaves the heads out.
        quantised: linear layers to run in int8; see `foveal.export.int8`.
        max_bytes_inside: weights of more go into a file of their own.

    Returns:
        Inputs and outputs of the graph at `path`.
    """
    graph = BackboneGraph(source.backbone, opset=opset, quantised=quantised)
    outputs = _tokens(graph)
    metadata = metadata_of(source, precision="int8" if quantised else "fp32")
    for name, head in source.heads.items() if with_heads else ():
        traced, reads = trace(head, patch_size=graph.config.patch_size)
        if not apart:
            outputs.append(typed(join(graph, traced, reads, name=name), output_shape(head)))
            continue
        _add_reads(graph, outputs, reads)
        for value, read in zip(traced.graph.inputs, reads, strict=True):
            value.name = read.name(graph.config.depth)
            value.shape = ir.Shape(read.shape(graph.config.width))
        traced.graph.outputs[0].name = name
        typed(traced.graph.outputs[0], output_shape(head))
        traced.metadata_props.update(metadata | {"foveal.head": head.identity})
        traced.producer_name = "foveal"
        _save(traced, path.with_name(f"{name}.onnx"), max_bytes_inside)
    found = ir.Graph(
        [graph.images],
        outputs,
        nodes=graph.writer.nodes,
        initializers=list(graph.writer.constants.values()),
        opset_imports={"": opset},
        name="backbone",
    )
    version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model = ir.Model(found, ir_version=version, producer_name="foveal", metadata_props=metadata)
    _save(model, path, max_bytes_inside)
    return [port(graph.images)], [port(one) for one in outputs]


def metadata_of(source: Source, *, precision: str) -> dict[str, str]:
    """Return what travels inside a graph: which backbone it is, under which terms, and how its inputs are prepared."""
    card = source.model.card
    return {
        "foveal.name": card.name,
        "foveal.identity": source.model.identity,
        "foveal.precision": precision,
        "foveal.licence": source.licence.model_dump_json(),
        "foveal.parents": json.dumps([parent.model_dump(mode="json") for parent in card.unaccepted().parents]),
        "foveal.backbone": card.backbone.model_dump_json(),
        "foveal.preprocessing": source.preprocessing.model_dump_json(),
    }


def typed(value: ir.Value, shape: Iterable[int | str]) -> ir.Value:
    """Return a float32 output with its shape; names stand for any number."""
    value.shape, value.dtype = ir.Shape(shape), ir.DataType.FLOAT
    return value


def port(value: ir.Value) -> Port:
    """Return what a card says of an input or output."""
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    shape = [one if isinstance(one, int) else str(one.value) for one in value.shape]
    return Port(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)


def _tokens(graph: BackboneGraph) -> list[ir.Value]:
    """Return the outputs of a backbone: class token, patches and registers of the last block, after the final norm."""
    config = graph.config
    tokens = graph.tokens(config.depth - 1, norm=True)
    patches = graph.patches(tokens, name="patches")
    found = [
        typed(graph.cls(tokens, name="cls"), ("batch", config.width)),
        typed(patches, Read("patches", config.depth - 1, norm=True).shape(config.width)),
    ]
    if config.num_registers:
        registers = graph.registers(tokens, name="registers")
        found.append(typed(registers, ("batch", config.num_registers, config.width)))
    return found


def _add_reads(graph: BackboneGraph, outputs: list[ir.Value], reads: Sequence[Read]) -> None:
    """Add what a head reads to the outputs of a backbone, unless it is among them."""
    for read in reads:
        name = read.name(graph.config.depth)
        if name not in {one.name for one in outputs}:
            value = typed(read.of(graph), read.shape(graph.config.width))
            value.name = name
            outputs.append(value)


def _save(model: ir.Model, path: Path, max_bytes_inside: int) -> None:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    num_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if num_bytes > max_bytes_inside else None)
