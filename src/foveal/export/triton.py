"""`foveal export triton`: a model repository that Triton starts: pictures as files in, tokens and answers of heads out.

REPO/
  export.json  LICENCE.txt
  preprocess/  Python backend: files of pictures -> normalised images, by foveal's own code, copied beside it
  backbone/    the graph with its heads, for ONNX Runtime, TensorRT or the Python backend
  ensemble/    both, one after the other
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import foveal
from foveal.backbone.card import Parent
from foveal.engine.gate import FAST_LIMIT
from foveal.errors import FovealError, nearest
from foveal.export.card import ExportCard, Port, publish_export, staged
from foveal.export.judging import open_trial
from foveal.export.onnx import PACKAGES, PORTABLE_OPSET
from foveal.export.onnx_engine import GRAPH, OnnxEngine
from foveal.export.runtimes import require
from foveal.export.source import Source
from foveal.export.tensorrt import PLAN_PRECISION, Profile, Range, write_plan
from foveal.export.triton_config import (
    BACKENDS,
    WARMUP_PICTURE,
    BackendName,
    Graph,
    Tensor,
    backbone_config,
    ensemble_config,
    preprocess_config,
)
from foveal.export.triton_sizing import Batching, Device, batching, device_named
from foveal.features.preprocessing import preprocessing_of
from foveal.images.decode import DecodeLimits

CONFIG, VERSION, LICENCE = "config.pbtxt", "1", "LICENCE.txt"
GRAPHS = f"backbone/{VERSION}"
# What the model `preprocess` needs of foveal: NumPy and Pillow are all that these import.
SOURCES = (
    "errors.py",
    "images/colour.py",
    "images/decode.py",
    "images/dicom.py",
    "images/jpeg.py",
    "images/preprocess.py",
    "images/tiff.py",
)
# What one picture may cost.
LIMITS = DecodeLimits(max_bytes=16 * 1024 * 1024, max_pixels=25_000_000)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of a picture with so many channels that any reader of PNG understands


def export_triton(
    model: str | Path,
    out: str | Path,
    *,
    heads: Sequence[str] = (),
    backend: BackendName = "onnx",
    gpu: str = "l4",
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write a model repository with the models `preprocess`, `backbone` and `ensemble`, each as version 1.

    The verdict is that of the graph by ONNX Runtime on this computer.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        heads: head folders; see `open_source`. They are part of the backbone's graph.
        backend: what runs the backbone: Triton's "onnx" or "tensorrt", or "python" with ONNX Runtime where Triton has
            neither.
        gpu: for batches and instances: "l4", "l40s", or "none" for a CPU.
        images: real images for the verdict; see `real_batches`.
        limit: least cosine to the model.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Returns:
        The card; `built` is False where a TensorRT plan has to be built elsewhere first, and the notes say how.

    Raises:
        ExportError: a package is missing, or the folder is in use or cannot be written.
        ExportRefused: the graph does not agree with the model; it is kept aside.
        FovealError: an unknown backend or GPU, TensorRT on a CPU; see also `open_source` and `real_batches`.
    """
    device = _checked(backend, gpu)
    require(*PACKAGES)
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
    config = trial.source.backbone.config
    batches = batching(config, trial.source.model.card.crop_size, device, half=backend == "tensorrt")
    with staged(Path(out)) as staging:
        version = staging / GRAPHS
        version.mkdir(parents=True)
        inputs, outputs = write_graph(trial.source, version / GRAPH, opset=PORTABLE_OPSET)
        precision = PLAN_PRECISION if backend == "tensorrt" else "fp32"
        card = trial.source.export_card(
            "triton", inputs=inputs, outputs=outputs, opset=PORTABLE_OPSET, precision=precision
        )
        engine = OnnxEngine(version)
        card.versions.update(onnxruntime=engine.description["version"])
        card = trial.judged(card, engine, folder=staging)
        card = _write_backbone(staging / "backbone", card, backend=backend, device=device, batches=batches)
        _write_preprocess(staging / "preprocess", trial.source, device, batches)
        _write_ensemble(staging / "ensemble", _graph(card))
        (staging / LICENCE).write_text(licence_text(card))
        return publish_export(staging, Path(out), card)


def licence_text(card: ExportCard) -> str:
    """Return what travels with the repository: the terms of the weights and of what they were made from."""
    lines = [f"Weights: {card.name}, {_terms(card)}"]
    lines += [f"Made from: {parent.name}, {_terms(parent)}" for parent in card.parents]
    lines.append(f"The programs in here are part of foveal {foveal.__version__}, Apache-2.0.")
    return "\n".join([*lines, "https://www.apache.org/licenses/LICENSE-2.0"]) + "\n"


def _checked(backend: str, gpu: str) -> Device:
    """Return the device, once the names are known and fit each other."""
    if backend not in BACKENDS:
        raise FovealError(
            f"--backend '{backend}' is not known; choose {', '.join(BACKENDS)}{nearest(backend, BACKENDS)}"
        )
    device = device_named(gpu)
    if backend == "tensorrt" and device.kind == "KIND_CPU":
        raise FovealError(
            "--backend tensorrt with --gpu none: TensorRT needs a GPU; choose --gpu l4 or another backend"
        )
    return device


def _terms(of: ExportCard | Parent) -> str:
    licence = of.licence
    return f"{licence.name} ({licence.terms} terms){f', {licence.url}' if licence.url else ''}"


def _graph(card: ExportCard) -> Graph:
    """Return the signature of a graph as Triton writes it: without the batch, and -1 for any size."""

    def tensor(port: Port) -> Tensor:
        return Tensor(port.name, tuple(size if isinstance(size, int) else -1 for size in port.shape[1:]))

    return Graph(tensor(card.inputs[0]), tuple(map(tensor, card.outputs)))


def _write_backbone(
    folder: Path, card: ExportCard, *, backend: BackendName, device: Device, batches: Batching
) -> ExportCard:
    """Write what lies beside the graph: its configuration, and the program or the plan that runs it.

    Returns:
        The card, which knows whether a plan was built.
    """
    side, patch_size = card.preprocessing.crop_size, card.preprocessing.patch_size
    config = backbone_config(
        _graph(card), backend=backend, device=device, batches=batches, side=side, patch_size=patch_size
    )
    (folder / CONFIG).write_text(config)
    if backend == "python":
        _write_program("backbone", folder / VERSION)
    if backend == "tensorrt":
        square = Range(side, side, side)
        profile = Profile(Range(1, batches.preferred[-1], batches.max_batch), square, square)
        return write_plan(card, folder / VERSION, profile, precision=PLAN_PRECISION)
    return card


def _write_program(name: str, version: Path) -> None:
    program = files("foveal.export.triton_models") / f"{name}.py"
    (version / "model.py").write_text(program.read_text(encoding="utf-8"), encoding="utf-8")


def _write_preprocess(folder: Path, source: Source, device: Device, batches: Batching) -> None:
    """Write the model that decodes: its program, what it needs of foveal, its settings, and a picture to warm up on."""
    version = folder / VERSION
    (version / "foveal" / "images").mkdir(parents=True)
    _write_program("preprocess", version)
    for package in ("foveal", "foveal/images"):
        text = f'"""Part of foveal {foveal.__version__}, Apache-2.0: what decoding and preprocessing need."""\n'
        (version / package / "__init__.py").write_text(text)
    for name in SOURCES:
        text = (files("foveal") / name).read_text(encoding="utf-8")
        (version / "foveal" / name).write_text(text, encoding="utf-8")
    transform = preprocessing_of(source.model.card)
    settings = {"transform": asdict(transform), "limits": asdict(LIMITS), "max_images": batches.max_batch}
    (version / "preprocess.json").write_text(json.dumps(settings, indent=2) + "\n")
    side, mode = source.model.card.crop_size, _MODES.get(transform.channels)
    if mode is not None:
        (folder / "warmup").mkdir()
        (folder / "warmup" / WARMUP_PICTURE).write_bytes(_warmup_bytes(mode, source.model.card.resize_size))
    images = Tensor("images", (transform.channels, side, side))
    (folder / CONFIG).write_text(preprocess_config(images, device=device, warmup=mode is not None))


def _warmup_bytes(mode: str, side: int) -> bytes:
    """Return a grey picture in Triton's layout of strings: its length in 4 bytes, the lowest first, then its bytes."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (side, side), 128).convert(mode).save(stream, format="PNG")
    data = stream.getvalue()
    return len(data).to_bytes(4, "little") + data


def _write_ensemble(folder: Path, graph: Graph) -> None:
    """Write the ensemble, whose version holds no file; the note keeps its folder where only files are copied."""
    (folder / VERSION).mkdir(parents=True)
    (folder / VERSION / "README").write_text("Triton joins `preprocess` and `backbone` as ../config.pbtxt says.\n")
    (folder / CONFIG).write_text(ensemble_config(graph))
