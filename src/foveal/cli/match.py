"""`foveal match`: see which patch of one picture is which patch of another."""

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
from foveal.cli.pictures import check_picture_target, read_picture, write_picture


def match(
    a: Annotated[Path, typer.Argument(help="Image file.", exists=True, dir_okay=False)],
    b: Annotated[Path, typer.Argument(help="Image file.", exists=True, dir_okay=False)],
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")] = Path("match.png"),
    max_matches: Annotated[int, typer.Option(help="Show the most similar ones.", min=1)] = 50,
    nms: Annotated[float, typer.Option(help="Drop matches nearer than this to better ones, patches.", min=0)] = 2.0,
    size: SizeOption = None,
    fit: FitOption = "resize",
    keep_background: Annotated[bool, typer.Option("--keep-background", help="Match all patches.")] = False,
    cell_size: Annotated[int, typer.Option(help="Longer side of each picture drawn, pixels.", min=1, max=4096)] = 448,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Match the foreground patches of two pictures that are each other's nearest, and draw lines between them."""
    check_picture_target(out)
    pixel_size = parse_size(size)
    from foveal.features.match import match as match_patches
    from foveal.features.match import match_picture
    from foveal.features.seen import see

    loaded = open_model(
        model, engine=engine, precision=precision, fast=fast, num_heads=num_heads, size=pixel_size, fit=fit
    )
    channels = loaded.card.backbone.channels
    first, second = (
        see(loaded, pixels, size=pixel_size, fit=fit, name=path.name)
        for path, pixels in ((path, read_picture(path, channels=channels)) for path in (a, b))
    )
    found = match_patches(first, second, keep_foreground=not keep_background, nms=nms, max_matches=max_matches)
    picture = match_picture(first, second, found, cell_size=cell_size)
    write_picture(out, picture)
    hint = "" if found.num_mutual else "; one picture has no foreground beside the other: try --keep-background"
    typer.echo(f"wrote {out}: {len(found.similarity)} of {found.num_mutual} mutual nearest patches{hint}")
