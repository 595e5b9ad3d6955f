"""Options that formats of export share, and what they print at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.export.card import ExportCard

ModelArgument = Annotated[str, typer.Argument(help="Model folder, checkpoint, or name in `foveal models`.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write; nothing may be there yet.")]
HeadOption = Annotated[
    list[str] | None,
    typer.Option("--head", metavar="[NAME=]FOLDER", help="Head folder; its output is called NAME.  Repeatable."),
]
LicenceOption = Annotated[
    str | None, typer.Option("--accept-licence", help="Name of the licence, where its terms have to be accepted.")
]


def report_export(out: Path, card: "ExportCard") -> None:
    """Print what was written."""
    typer.echo(f"{out}: {card.name} as {card.format}, {card.precision}")
    for note in card.notes:
        typer.echo(f"note: {note}")
