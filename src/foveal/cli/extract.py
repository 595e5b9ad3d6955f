"""`foveal extract`: features of an image set to a folder of arrays."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.terminal import progress_of


def extract(
    images: Annotated[str, typer.Argument(help="A folder, a .txt list, or .tar or .parquet shards.")],
    model: Annotated[str, typer.Option(help="Model folder, checkpoint, or name in `foveal models`.")],
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier feature folder is replaced.")],
    patches: Annotated[bool, typer.Option("--patches", help="Also write patches.npy (float16; large).")] = False,
    size: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]", min=1)] = None,
    fit: Annotated[str, typer.Option(help="crop, resize or pad.")] = "crop",
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 32,
) -> None:
    """Extract frozen features of every readable image, with the rows and settings they belong to."""
    import foveal
    from foveal.features.store import check_target, write_features
    from foveal.images.imageset import ImageSet

    check_target(out)
    image_set = ImageSet.open(images)
    with progress_of("extracting") as progress:
        card = write_features(
            out,
            foveal.load(model),
            image_set,
            what=("cls", "patches") if patches else ("cls",),
            size=size,
            fit=fit,  # type: ignore[arg-type]  # checked by Preprocess
            batch_size=batch_size,
            progress=progress,
        )
    shapes = ", ".join(f"{name} {tuple(array['shape'])}" for name, array in card["arrays"].items())
    skipped = f"; {sum(card['bad'].values())} bad images skipped" if card["bad"] else ""
    typer.echo(f"wrote {out}: {shapes}{skipped}")
