"""`foveal export onnx`: a backbone, with its heads, as one ONNX graph of any batch and any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from foveal.engine.gate import FAST_LIMIT
from foveal.export.card import ExportCard, ExportError, publish_export, staged
from foveal.export.judging import open_trial
from foveal.export.onnx_engine import GRAPH, OnnxEngine
from foveal.export.runtimes import require

# The first opset with layer norm; the newest of which ONNX Runtime 1.32 runs all (of 28 it lacks QuantizeLinear); one
# that runtimes of some years read.
LEAST_OPSET, CURRENT_OPSET, PORTABLE_OPSET = 17, 27, 20
# Heads are traced with operators of this one.
LEAST_OPSET_OF_HEADS = 20
OnnxPrecision = Literal["fp32", "int8"]
PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")


def export_onnx(
    model: str | Path,
    out: str | Path,
    *,
    heads: Sequence[str] = (),
    apart: bool = False,
    precision: OnnxPrecision = "fp32",
    opset: int | None = None,
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write `model.onnx`, and heads apart from it if wished, into a folder that appears whole or not at all.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        heads: head folders; see `open_source`.
        apart: write each head as its own graph, NAME.onnx, which reads what the backbone gives out.
        precision: "fp32", or "int8" for linear layers calibrated on the images, those that suffer most left in float.
        opset: of the operators; None is the current one, or the newest of the installed onnx.
        images: real images for the verdict and for calibrating int8; see `real_batches`.
        limit: least cosine to the model.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Returns:
        The card of what was written.

    Raises:
        ExportError: a package is missing, an opset that cannot be written, or a folder that is in use or cannot be
            written.
        ExportRefused: the export does not agree with the model; it is kept aside.
        FovealError: see `open_source` and `real_batches`.
    """
    require(*PACKAGES)
    opset = opset_of(opset, with_heads=bool(heads))
    if apart and not heads:
        raise ExportError("--apart is of heads, and there is none; give --head, or leave it out")
    from foveal.export.int8 import Int8, calibrated
    from foveal.export.onnx_files import write_graph

    trial = open_trial(
        model,
        out=out,
        heads=heads,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    trial, layers, notes = calibrated(trial, opset=opset) if precision == "int8" else Int8(trial, {}, [])
    with staged(Path(out)) as staging:
        inputs, outputs = write_graph(trial.source, staging / GRAPH, opset=opset, apart=apart, quantised=layers)
        card = trial.source.export_card(
            "onnx",
            inputs=inputs,
            outputs=outputs,
            opset=opset,
            precision=precision,
            notes=notes,
        )
        engine = OnnxEngine(staging)
        card.versions.update(onnxruntime=engine.description["version"])
        card = trial.judged(card, engine, folder=staging)
        return publish_export(staging, Path(out), card)


def opset_of(wanted: int | None, *, with_heads: bool = False) -> int:
    """Return the opset to write; ExportError for one that cannot be, or not by the onnx that is installed."""
    (defs,) = require("onnx.defs")
    newest, least = int(defs.onnx_opset_version()), LEAST_OPSET_OF_HEADS if with_heads else LEAST_OPSET
    if wanted is None:
        return min(CURRENT_OPSET, newest)
    if not least <= wanted <= newest:
        what = "a graph with heads" if with_heads else "this graph"
        raise ExportError(
            f"opset {wanted}: {what} needs at least {least}, and the installed onnx knows up to {newest}; "
            f"leave it out for the current one, or choose {PORTABLE_OPSET} for runtimes of some years"
        )
    return wanted
