"""`foveal attention`: see where the class token and the registers look."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.loading import FitOption, ModelOption, NumHeadsOption, SizeOption, open_model, parse_size
from foveal.cli.pictures import SOURCES, check_picture_target, list_pictures, read_pictures, write_picture


def attention(
    images: Annotated[list[str], typer.Argument(help=f"Any of: {SOURCES}.")],
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")] = Path("attention.png"),
    layer: Annotated[int, typer.Option(help="Block from 0, or from the end: -1 is the last.")] = -1,
    heads: Annotated[bool, typer.Option("--heads", help="Also show each head of the class token.")] = False,
    registers: Annotated[bool, typer.Option("--registers", help="Also show each register, mean of heads.")] = False,
    size: SizeOption = None,
    fit: FitOption = "resize",
    max_images: Annotated[int, typer.Option(help="Of more images, show this many.", min=1)] = 24,
    cell_size: Annotated[int, typer.Option(help="Longer side of each picture drawn, pixels.", min=1, max=4096)] = 224,
    num_heads: NumHeadsOption = None,
) -> None:
    """Draw where the class token looks: the attention weights of one block, each map from 0 to its own maximum."""
    check_picture_target(out)
    pixel_size = parse_size(size)
    listing = list_pictures(images, max_images=max_images)
    from foveal.features.attention import attention_maps, attention_picture

    loaded = open_model(model, num_heads=num_heads, size=pixel_size, fit=fit)
    maps = [
        attention_maps(loaded, pixels, layer=layer, size=pixel_size, fit=fit, name=name)
        for name, pixels in read_pictures(listing, channels=loaded.card.backbone.channels)
    ]
    picture = attention_picture(maps, heads=heads, registers=registers, cell_size=cell_size)
    write_picture(out, picture)
    typer.echo(f"wrote {out}, {picture.width} x {picture.height} pixels, {len(maps)} images")
