"""`foveal export tensorrt`: a plan where TensorRT is, elsewhere the graph and the command that builds it."""

from functools import partial
from typing import Annotated, Literal

import typer

from foveal.cli.export.options import (
    HeadOption,
    ImagesOption,
    LicenceOption,
    LimitOption,
    ModelArgument,
    OutOption,
    report_export,
)
from foveal.cli.loading import NumHeadsOption


def tensorrt(
    model: ModelArgument,
    out: OutOption,
    head: HeadOption = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="That TensorRT may use; fp16 overflows in many models.")
    ] = "bf16",
    batch: Annotated[str, typer.Option(metavar="LEAST:USUAL:MOST", help="Images in a batch.")] = "1:8:64",
    height: Annotated[
        str | None, typer.Option(metavar="LEAST:USUAL:MOST", help="Pixels.  [default: the model's size]")
    ] = None,
    width: Annotated[
        str | None, typer.Option(metavar="LEAST:USUAL:MOST", help="Pixels.  [default: the model's size]")
    ] = None,
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    accept_licence: LicenceOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Build a TensorRT plan where TensorRT is; elsewhere write the ONNX graph and the command that builds it."""
    from foveal.export.tensorrt import export_tensorrt, parse_range

    make = partial(
        export_tensorrt,
        model,
        out,
        heads=head or (),
        precision=precision,
        batch=parse_range(batch, option="--batch"),
        height=None if height is None else parse_range(height, option="--height"),
        width=None if width is None else parse_range(width, option="--width"),
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    report_export(out, make)
