"""`foveal convert`: a checkpoint in another format, to the bit."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.loading import NumHeadsOption


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .pth or .safetensors file, or a folder of weights.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write; nothing may be there yet.")],
    to: Annotated[str, typer.Option(help="official (a .pth file), huggingface, timm or foveal (folders).")],
    num_heads: NumHeadsOption = None,
) -> None:
    """Write a checkpoint of any known kind in another format, to the bit, and say what that format cannot hold."""
    from foveal.backbone.convert import convert as convert_checkpoint
    from foveal.backbone.doctor import describe

    checkpoint, lost = convert_checkpoint(source, out, to=to, num_heads=num_heads)
    typer.echo(f"wrote {out}: {describe(checkpoint.card.backbone)}, {checkpoint.layout} -> {to}")
    for text in checkpoint.assumed:
        typer.echo(f"assumed: {text}")
    for text in lost:
        typer.echo(f"not held: {text}")
