"""`foveal doctor`: what a checkpoint is, and why it does not load."""

from typing import Annotated

import typer

from foveal.cli.loading import NumHeadsOption


def doctor(
    file: Annotated[str, typer.Argument(help="A file or folder of weights, or a name in `foveal models`.")],
    expect: Annotated[
        str | None, typer.Option(help="The network it should be, e.g. vits14 or dinov2_vitb14_reg.")
    ] = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Say what a checkpoint is and whether it loads; exit code 2, with the reason, where it does not."""
    from foveal.backbone.doctor import diagnose
    from foveal.backbone.source import file_of

    diagnosis = diagnose(file_of(file), expect=expect, num_heads=num_heads)
    for name, value in diagnosis.rows:
        typer.echo(f"{name:<12} {value}")
    for text in diagnosis.warnings:
        typer.echo(f"warning      {text}")
    typer.echo(f"{file} loads: foveal.load({file!r})")
