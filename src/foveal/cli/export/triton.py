"""`foveal export triton`: a model repository for NVIDIA Triton."""

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


def triton(
    model: ModelArgument,
    out: OutOption,
    head: HeadOption = None,
    backend: Annotated[
        Literal["onnx", "tensorrt", "python"],
        typer.Option(help="What runs the backbone; python is ONNX Runtime where Triton has neither."),
    ] = "onnx",
    gpu: Annotated[
        Literal["l4", "l40s", "none"], typer.Option(help="Sets batches and instances; none is a CPU.")
    ] = "l4",
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    accept_licence: LicenceOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Write a repository that Triton starts: pictures as files in, tokens and answers of heads out."""
    from foveal.export.triton import export_triton

    make = partial(
        export_triton,
        model,
        out,
        heads=head or (),
        backend=backend,
        gpu=gpu,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    report_export(out, make)
