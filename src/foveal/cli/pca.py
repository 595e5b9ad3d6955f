"""`foveal pca`: see what the patch features tell apart."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.loading import (
    EngineOption,
    FastOption,
    FitOption,
    ModelOption,
    NumHeadsOption,
    PrecisionOption,
    SizeOption,
    open_model,
    parse_size,
)
from foveal.cli.pictures import SOURCES, check_picture_target, list_pictures, read_pictures, write_picture


def pca(
    images: Annotated[list[str], typer.Argument(help=f"Any of: {SOURCES}.")],
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")] = Path("pca.png"),
    size: SizeOption = None,
    fit: FitOption = "resize",
    keep_background: Annotated[bool, typer.Option("--keep-background", help="Colour all patches.")] = False,
    max_images: Annotated[int, typer.Option(help="Of more images, show this many.", min=1)] = 24,
    cell_size: Annotated[int, typer.Option(help="Longer side of each picture drawn, pixels.", min=1, max=4096)] = 224,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Draw patch features as colours: the first three principal components, jointly over the images."""
    check_picture_target(out)
    pixel_size = parse_size(size)
    listing = list_pictures(images, max_images=max_images)
    from foveal.features.pca import pca_picture
    from foveal.features.seen import see

    loaded = open_model(
        model, engine=engine, precision=precision, fast=fast, num_heads=num_heads, size=pixel_size, fit=fit
    )
    seen = [
        see(loaded, pixels, size=pixel_size, fit=fit, name=name)
        for name, pixels in read_pictures(listing, channels=loaded.card.backbone.channels)
    ]
    picture = pca_picture(seen, keep_foreground=not keep_background, cell_size=cell_size)
    write_picture(out, picture)
    typer.echo(f"wrote {out}, {picture.width} x {picture.height} pixels, {len(seen)} images")
