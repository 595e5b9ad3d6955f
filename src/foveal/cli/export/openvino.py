"""`foveal export openvino`: IR of any batch and any size."""

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


def openvino(
    model: ModelArgument,
    out: OutOption,
    head: HeadOption = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Of the weights; int8 is calibrated on the images.")
    ] = "fp32",
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    accept_licence: LicenceOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Write OpenVINO IR, compared with the model on real images; batch, height and width stay free."""
    from foveal.export.openvino import export_openvino

    make = partial(
        export_openvino,
        model,
        out,
        heads=head or (),
        precision=precision,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    report_export(out, make)
