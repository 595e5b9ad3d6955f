"""`foveal export verify`: the verdict on an export that is there already."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.export.options import HeadOption, ImagesOption, LimitOption, ModelArgument, report_export
from foveal.cli.loading import NumHeadsOption


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of an export.")],
    model: ModelArgument,
    head: HeadOption = None,
    images: ImagesOption = None,
    limit: LimitOption = 0.999,
    num_heads: NumHeadsOption = None,
) -> None:
    """Compare an export with its model again: on other images, or a TensorRT plan on the GPU that will serve it."""
    from foveal.export.verify import verify_export

    make = partial(verify_export, folder, model, heads=head or (), images=images, limit=limit, num_heads=num_heads)
    report_export(folder, make)
