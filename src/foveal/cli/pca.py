"""`foveal pca`: see what the patch features tell apart."""

import io
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.loading import EngineOption, FastOption, PrecisionOption, open_model
from foveal.cli.terminal import check_file_target, write_file
from foveal.errors import FovealError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def pca(
    images: Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)],
    model: Annotated[Path, typer.Option(help="Model folder.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")] = Path("pca.png"),
    size: Annotated[int | None, typer.Option(help="Pixels; larger is finer.  [default: the model's]", min=1)] = None,
    fit: Annotated[str, typer.Option(help="crop; or resize or pad, for images of one shape.")] = "crop",
    keep_background: Annotated[bool, typer.Option("--keep-background", help="Colour all patches.")] = False,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
) -> None:
    """Draw patch features as colours: the first three principal components, jointly over the images."""
    if out.suffix.lower() not in FORMATS:
        raise FovealError(f"--out {out}: cannot write '{out.suffix}'; choose a name with {', '.join(FORMATS)}")
    check_file_target(out)
    from foveal.features.pca import pca_picture

    picture = pca_picture(
        open_model(model, engine=engine, precision=precision, fast=fast),
        images,
        size=size,
        fit=fit,  # type: ignore[arg-type]  # checked by Preprocess
        keep_foreground=not keep_background,
    )
    data = io.BytesIO()
    picture.save(data, FORMATS[out.suffix.lower()])
    write_file(out, data.getvalue())
    typer.echo(f"wrote {out}, {picture.width} x {picture.height} pixels")
