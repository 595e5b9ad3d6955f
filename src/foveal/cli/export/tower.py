"""`foveal export tower`: the image side of a vision-language model."""

from functools import partial
from typing import Annotated

import typer

from foveal.cli.export.options import (
    ImagesOption,
    LicenceOption,
    LimitOption,
    ModelArgument,
    OutOption,
    report_export,
)
from foveal.cli.loading import NumHeadsOption


def tower(
    model: ModelArgument,
    out: OutOption,
    layer: Annotated[int, typer.Option(help="Whose patch tokens: -1 the last block, -2 the one before.")] = -2,
    other: Annotated[
        str | None, typer.Option("--beside", help="CLIP or SigLIP folder of transformers, whose tokens stand beside.")
    ] = None,
    other_licence: Annotated[str, typer.Option("--beside-licence", help="Name of its licence.")] = "unknown",
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    accept_licence: LicenceOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Write a folder that a LLaVA of transformers takes as its vision tower: one token a patch, nothing else."""
    from foveal.export.tower_folder import export_tower

    make = partial(
        export_tower,
        model,
        out,
        layer=layer,
        other=other,
        other_licence=other_licence,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    report_export(out, make)
