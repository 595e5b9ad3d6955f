"""`foveal similar`: see what looks like one patch of a picture to the model."""

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
from foveal.cli.pictures import SOURCES, check_picture_target, list_pictures, read_picture, read_pictures, write_picture
from foveal.cli.terminal import typed_options
from foveal.errors import FovealError


def similar(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="Image file that holds the point.", exists=True, dir_okay=False)],
    point: Annotated[str, typer.Option(help="Pixel of IMAGE, from its left and its top.", metavar="X,Y")],
    model: ModelOption,
    others: Annotated[list[str] | None, typer.Argument(help=f"Any of: {SOURCES}.")] = None,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")] = Path("similar.png"),
    size: SizeOption = None,
    fit: FitOption = "resize",
    max_images: Annotated[int, typer.Option(help="Of more others, show this many.", min=1)] = 24,
    cell_size: Annotated[int, typer.Option(help="Longer side of each picture drawn, pixels.", min=1, max=4096)] = 224,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Draw how similar all patches of IMAGE and OTHERS are to the patch of IMAGE under a point, on one scale."""
    if not others and "--max-images" in typed_options(context):
        raise FovealError("--max-images has no effect without OTHERS; name some, or leave it out")
    check_picture_target(out)
    pixel_size = parse_size(size)
    place = _point(point)
    listing = list_pictures(others, max_images=max_images) if others else None
    from foveal.features.seen import see
    from foveal.features.similar import similarity_maps, similarity_picture

    loaded = open_model(
        model, engine=engine, precision=precision, fast=fast, num_heads=num_heads, size=pixel_size, fit=fit
    )
    channels = loaded.card.backbone.channels
    first = see(loaded, read_picture(image, channels=channels), size=pixel_size, fit=fit, name=image.name)
    first.geometry.patch_at(*place)  # a wrong point is said before the other images are read
    pictures = () if listing is None else read_pictures(listing, channels=channels)
    seen = [
        first,
        *(see(loaded, pixels, size=pixel_size, fit=fit, name=name) for name, pixels in pictures),
    ]
    maps = similarity_maps(first, seen[1:], point=place)
    picture = similarity_picture(seen, maps, point=place, cell_size=cell_size)
    write_picture(out, picture)
    typer.echo(f"wrote {out}, {picture.width} x {picture.height} pixels")
    for other, found in zip(seen[1:], maps[1:], strict=True):
        typer.echo(f"{other.name}\t{found.values.max():.4f}\t{found.best[0]:.0f},{found.best[1]:.0f}")


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise FovealError(f"--point {text}: give two numbers, X,Y, for example 120,80") from None
    return x, y
