"""`foveal export tensorrt`: a TensorRT plan where TensorRT is; elsewhere the ONNX graph and the command that builds it.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from foveal.backbone.variants import multiple_of_patch
from foveal.engine.gate import FAST_LIMIT
from foveal.errors import FovealError
from foveal.export.card import VERIFY, ExportCard, ExportError, publish_export, staged
from foveal.export.judging import open_trial
from foveal.export.onnx import PACKAGES, PORTABLE_OPSET
from foveal.export.onnx_engine import GRAPH, OnnxEngine
from foveal.export.runtimes import require

PLAN, SCRIPT = "model.plan", "build.sh"
PlanPrecision = Literal["fp32", "fp16", "bf16"]
# bf16 has the range of float32; in fp16 large activations of vision transformers overflow, and nothing says so.
PLAN_PRECISION: PlanPrecision = "bf16"


class Range(NamedTuple):
    """The least, the usual and the largest of a dimension; a plan is fastest at the usual one."""

    min: int
    opt: int
    max: int


class Profile(NamedTuple):
    """The shapes that a plan takes: images in a batch, and pixels of a side."""

    batch: Range
    height: Range
    width: Range

    def shapes(self, channels: int) -> list[tuple[int, int, int, int]]:
        """Return the least, the usual and the largest shape (B, C, H, W)."""
        return [
            (batch, channels, height, width)
            for batch, height, width in zip(self.batch, self.height, self.width, strict=True)
        ]


BATCH = Range(1, 8, 64)


def parse_range(text: str, *, option: str) -> Range:
    """Return the range that an option says: 8, or 1:8:64.

    Raises:
        FovealError: anything else, or numbers that do not ascend.

    Example:
        >>> parse_range("1:8:64", option="--batch"), parse_range("224", option="--height")
        (Range(min=1, opt=8, max=64), Range(min=224, opt=224, max=224))
    """
    parts = text.split(":")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(parts) not in (1, 3) or len(numbers) != len(parts):
        raise FovealError(f"{option} {text}; write one number, or least:usual:largest, such as 1:8:64")
    if numbers != sorted(numbers) or numbers[0] < 1:
        raise FovealError(f"{option} {text}; the numbers must ascend from at least 1, such as 1:8:64")
    return Range(*(numbers * 3 if len(numbers) == 1 else numbers))


def export_tensorrt(
    model: str | Path,
    out: str | Path,
    *,
    heads: Sequence[str] = (),
    precision: PlanPrecision = PLAN_PRECISION,
    batch: Range | None = None,
    height: Range | None = None,
    width: Range | None = None,
    images: str | Path | None = None,
    limit: float = FAST_LIMIT,
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> ExportCard:
    """Write `model.onnx`, `build.sh`, and where the package tensorrt is installed `model.plan`.

    A plan holds for the kind of GPU and the version of TensorRT that it was built with. The verdict is that of the
    graph that it is built from: plans round further, and are not run here.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder to write; nothing may be there yet.
        heads: head folders; see `open_source`.
        precision: that TensorRT may use beside float32, whose products it computes in TF32 in any case.
        batch: images in a batch; None is 1 to 64, usually 8.
        height: pixels; None is the model's size.
        width: likewise.
        images: real images for the verdict; see `real_batches`.
        limit: least cosine to the model.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Returns:
        The card; `built` says whether the plan is there, and the notes what to do where it is not.

    Raises:
        ExportError: a package is missing, TensorRT refuses the graph, or the folder is in use or cannot be written.
        ExportRefused: the graph does not agree with the model; it is kept aside.
        FovealError: sizes that are no multiples of the patch size; see also `open_source` and `real_batches`.
    """
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
    source = trial.source
    side, config = source.model.card.crop_size, source.backbone.config
    profile = Profile(batch or BATCH, height or Range(side, side, side), width or Range(side, side, side))
    _check_sizes(profile, config.patch_size)
    with staged(Path(out)) as staging:
        inputs, outputs = write_graph(source, staging / GRAPH, opset=PORTABLE_OPSET)
        card = source.export_card(
            "tensorrt", inputs=inputs, outputs=outputs, opset=PORTABLE_OPSET, precision=precision, built=False
        )
        card = trial.judged(card, OnnxEngine(staging), folder=staging)
        card = write_plan(card, staging, profile, precision=precision)
        return publish_export(staging, Path(out), card)


def trtexec_command(shapes: Sequence[tuple[int, int, int, int]], *, precision: PlanPrecision) -> str:
    """Return the command that builds the plan beside the graph."""
    bounds = [
        f"--{name}Shapes=images:{'x'.join(map(str, shape))}"
        for name, shape in zip(("min", "opt", "max"), shapes, strict=True)
    ]
    reduced = [] if precision == "fp32" else [f"--{precision}"]
    return " \\\n  ".join(["trtexec", f"--onnx={GRAPH}", f"--saveEngine={PLAN}", *bounds, *reduced])


def write_plan(card: ExportCard, folder: Path, profile: Profile, *, precision: PlanPrecision) -> ExportCard:
    """Write `build.sh` beside the graph in a folder, and where TensorRT is the plan, unless the export is refused.

    Returns:
        The card, which says whether the plan was built, and what to do where it was not.

    Raises:
        ExportError: see `build_plan`.
    """
    shapes = profile.shapes(card.backbone.channels)
    command = trtexec_command(shapes, precision=precision)
    (folder / SCRIPT).write_text(f'#!/bin/sh\nset -e\ncd "$(dirname "$0")"\n{command}\n')
    (folder / SCRIPT).chmod(0o755)
    if card.refused is not None:
        return card
    try:
        import tensorrt
    except ImportError:
        note = (
            f"TensorRT is not installed here, so no plan was built: run {SCRIPT} on the GPU that will serve, and then "
            f"{VERIFY}"
        )
        return card.model_copy(update={"built": False, "notes": [note]})
    (folder / PLAN).write_bytes(build_plan(tensorrt, folder / GRAPH, shapes, precision=precision))
    notes = [f"the verdict is that of the graph; the plan was built here and not run: {VERIFY}"]
    versions = {**card.versions, "tensorrt": str(tensorrt.__version__)}
    return card.model_copy(update={"built": True, "notes": notes, "versions": versions})


def build_plan(
    tensorrt: Any, graph: Path, shapes: Sequence[tuple[int, int, int, int]], *, precision: PlanPrecision
) -> bytes:
    """Return the plan that TensorRT builds from an ONNX graph.

    Args:
        tensorrt: the package.
        graph: the file.
        shapes: the least, the usual and the largest (B, C, H, W) of the images.
        precision: that it may use.

    Raises:
        ExportError: it cannot read the graph, or not build it.
    """
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.WARNING))
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise ExportError(f"TensorRT {tensorrt.__version__} cannot read the graph: {errors}; use a newer one")
    settings = builder.create_builder_config()
    if precision != "fp32":
        if not hasattr(tensorrt.BuilderFlag, precision.upper()):
            raise ExportError(
                f"TensorRT {tensorrt.__version__} takes no precision but that of the graph; use --precision fp32, or "
                "TensorRT 10"
            )
        settings.set_flag(getattr(tensorrt.BuilderFlag, precision.upper()))
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *shapes)
    settings.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise ExportError(f"TensorRT {tensorrt.__version__} cannot build the plan; what it printed above says why")
    return bytes(plan)


def _check_sizes(profile: Profile, patch_size: int) -> None:
    for name, sizes in (("--height", profile.height), ("--width", profile.width)):
        for size in sizes:
            if size % patch_size:
                raise FovealError(multiple_of_patch(name, size, patch_size))
