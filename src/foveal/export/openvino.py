"""`foveal export openvino`: a backbone, with its heads, as OpenVINO IR of any batch and any size."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from foveal.engine.gate import FAST_LIMIT
from foveal.engine.openvino_engine import version
from foveal.engine.openvino_graph import import_openvino
from foveal.export.card import ExportCard, ExportError, publish_export, staged
from foveal.export.judging import open_trial
from foveal.export.onnx import PACKAGES, PORTABLE_OPSET
from foveal.export.openvino_ir import IR, IrEngine
from foveal.export.runtimes import require

IrPrecision = Literal["fp32", "fp16", "int8"]


def export_openvino(
    model: str | Path,
    out: str | Path,
    *,
    heads: Sequence[str] = (),
    precision: IrPrecision = "fp32",
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write `model.xml` and `model.bin` into a folder that appears whole or not at all.

    The IR is made by OpenVINO from the graph of `foveal export onnx`, and run beside the model.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        heads: head folders; see `open_source`.
        precision: in which weights are kept: "fp32", "fp16" for half the size, or "int8"; see `export_onnx`.
        images: real images for the verdict and for calibrating int8; see `real_batches`.
        limit: least cosine to the model.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        ExportError: a package is missing, or the folder is in use or cannot be written.
        ExportRefused: the export does not agree with the model; it is kept aside.
        FovealError: see `open_source` and `real_batches`.
    """
    openvino = import_openvino()
    require(*PACKAGES)
    from foveal.export.int8 import Int8, calibrated
    from foveal.export.onnx_files import metadata_of, write_graph

    trial = open_trial(
        model,
        out=out,
        heads=heads,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    source = trial.source
    trial, layers, notes = calibrated(trial, opset=PORTABLE_OPSET) if precision == "int8" else Int8(trial, {}, [])
    with staged(Path(out)) as staging:
        graph = staging / ".graph"
        graph.mkdir()
        inputs, outputs = write_graph(source, graph / "model.onnx", opset=PORTABLE_OPSET, quantised=layers)
        try:
            converted = openvino.Core().read_model(graph / "model.onnx")
            converted.set_rt_info(json.dumps(metadata_of(source, precision=precision)), ["foveal"])
            openvino.save_model(converted, staging / IR, compress_to_fp16=precision == "fp16")
        except RuntimeError as error:
            raise ExportError(f"{out}: OpenVINO cannot write the model ({error}); free space, or report it") from error
        del converted  # it maps the graph's file
        shutil.rmtree(graph)
        card = source.export_card("openvino", inputs=inputs, outputs=outputs, precision=precision, notes=notes)
        card.versions.update(openvino=version())
        card = trial.judged(card, IrEngine(staging), folder=staging)
        return publish_export(staging, Path(out), card)
