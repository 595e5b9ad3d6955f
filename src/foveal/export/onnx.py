"""`foveal export onnx`: a backbone, with its heads, as one ONNX graph of any batch and any size."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foveal.export.card import ExportCard, ExportError, Port, publish_export, staged
from foveal.export.onnx_engine import GRAPH, OnnxEngine
from foveal.export.runtimes import require
from foveal.export.source import Source, open_source

if TYPE_CHECKING:
    import onnx_ir as ir

# The first opset with layer norm; the newest that ONNX Runtime runs; one that runtimes of some years read.
LEAST_OPSET, CURRENT_OPSET, PORTABLE_OPSET = 17, 27, 20
# A file of ONNX holds less than 2 GiB; beyond that weights go into one file beside it.
MAX_BYTES_INSIDE = 1_900_000_000
NUM_PATCHES = "grid_h*grid_w"


def export_onnx(
    model: str | Path,
    out: str | Path,
    *,
    heads: Sequence[str] = (),
    opset: int = CURRENT_OPSET,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write `model.onnx` and its card into a folder that appears whole or not at all.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        heads: head folders; see `open_source`.
        opset: of the operators.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Returns:
        The card of what was written.

    Raises:
        ExportError: a package is missing, an opset that cannot be written, or a folder that is in use or cannot be
            written.
        ExportRefused: the export does not agree with the model; it is kept aside.
        FovealError: see `open_source`.
    """
    check_opset(opset)
    require("onnx", "onnx_ir", "onnxruntime")
    source = open_source(model, out=out, heads=heads, accept_licence=accept_licence, num_heads=num_heads)
    with staged(Path(out)) as staging:
        inputs, outputs = write_graph(source, staging / GRAPH, opset=opset)
        card = source.export_card("onnx", inputs=inputs, outputs=outputs, opset=opset)
        engine = OnnxEngine(staging)
        card.versions.update(onnxruntime=engine.description["version"])
        return publish_export(staging, Path(out), card)


def check_opset(opset: int) -> None:
    """Refuse an opset that cannot be written, or not by the version of onnx that is installed."""
    (defs,) = require("onnx.defs")
    newest = defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= newest:
        raise ExportError(
            f"opset {opset}: this graph needs at least {LEAST_OPSET}, and the installed onnx knows up to {newest}; "
            f"leave it out for {CURRENT_OPSET}, or choose {PORTABLE_OPSET} for runtimes of some years"
        )


@torch.no_grad()
def write_graph(
    source: Source, path: Path, *, opset: int, precision: str = "fp32", max_bytes_inside: int = MAX_BYTES_INSIDE
) -> tuple[list[Port], list[Port]]:
    """Write the graph of a model to a file, its larger weights to a second one where one cannot hold them.

    Returns:
        Its inputs and outputs.
    """
    import onnx
    import onnx_ir as ir

    from foveal.export.graph import BackboneGraph

    config = source.backbone.config
    graph = BackboneGraph(source.backbone, opset=opset)
    tokens = graph.tokens(config.depth - 1, norm=True)
    outputs = [
        typed(graph.cls(tokens, name="cls"), ("batch", config.width)),
        typed(graph.patches(tokens, name="patches"), ("batch", NUM_PATCHES, config.width)),
    ]
    if config.num_registers:
        registers = graph.registers(tokens, name="registers")
        outputs.append(typed(registers, ("batch", config.num_registers, config.width)))
    tape = graph.writer.tape
    opset_imports = {"": opset}
    found = ir.Model(
        ir.Graph(
            [graph.images],
            outputs,
            nodes=tape.nodes,
            initializers=tape.initializers,
            opset_imports=opset_imports,
            name=source.model.card.name,
        ),
        ir_version=onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]),
        producer_name="foveal",
        metadata_props=metadata_of(source, precision=precision),
    )
    num_bytes = sum(value.const_value.nbytes for value in tape.initializers if value.const_value is not None)
    ir.save(found, path, external_data=f"{path.name}.data" if num_bytes > max_bytes_inside else None)
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


def typed(value: "ir.Value", shape: Sequence[int | str]) -> "ir.Value":
    """Return a float32 output with its shape; names stand for any number."""
    import onnx_ir as ir

    value.shape, value.dtype = ir.Shape(shape), ir.DataType.FLOAT
    return value


def port(value: "ir.Value") -> Port:
    """Return what a card says of an input or output."""
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    shape = [one if isinstance(one, int) else str(one.value) for one in value.shape]
    return Port(name=value.name, dtype=str(value.dtype.numpy()), shape=shape)
