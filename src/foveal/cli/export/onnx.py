"""`foveal export onnx`: one graph of any batch and any size."""

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


def onnx(
    model: ModelArgument,
    out: OutOption,
    head: HeadOption = None,
    apart: Annotated[bool, typer.Option("--apart", help="Write each head as its own graph.")] = False,
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="int8 is calibrated on the images.")] = "fp32",
    opset: Annotated[int | None, typer.Option(help="Version of the operators.  [default: the current one]")] = None,
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    accept_licence: LicenceOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Write an ONNX graph, compared with the model on real images; batch, height and width stay free."""
    from foveal.export.onnx import export_onnx

    make = partial(
        export_onnx,
        model,
        out,
        heads=head or (),
        apart=apart,
        precision=precision,
        opset=opset,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    report_export(out, make)
