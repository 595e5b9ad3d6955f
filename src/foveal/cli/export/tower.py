"""`foveal export tower`: a vision tower for LLaVA of transformers."""

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
    clip: Annotated[
        str | None, typer.Option(help="Folder or name of a CLIP or SigLIP model whose tokens stand beside.")
    ] = None,
    clip_licence: Annotated[str, typer.Option(help="Licence of its weights.")] = "unknown",
    image_size: Annotated[
        int | None, typer.Option(help="Pixels of a side.  [default: that of CLIP, else of the model]")
    ] = None,
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    accept_licence: LicenceOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Write a folder whose penultimate patch tokens LLaVA of transformers reads, compared with the model."""
    from foveal.export.tower_folder import export_tower

    make = partial(
        export_tower,
        model,
        out,
        clip=clip,
        clip_licence=clip_licence,
        image_size=image_size,
        images=images,
        limit=limit,
        accept_licence=accept_licence,
        num_heads=num_heads,
    )
    report_export(out, make)
