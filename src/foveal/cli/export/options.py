"""Options that formats of export share, and what they print at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.terminal import print_table

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


ImagesOption = Annotated[
    str | None,
    typer.Option("--images", help="Real images to compare on: folder, list, shard.  [default: photographs of `demo`]"),
]
LimitOption = Annotated[
    float, typer.Option("--limit", help="Least cosine to the model; an export below it is kept aside.")
]


def report_export(out: Path, make: "Callable[[], ExportCard]") -> None:
    """Make an export and print its verdict, also where it is refused, and what was written."""
    from foveal.export.card import ExportRefused

    try:
        card = make()
    except ExportRefused as refused:
        _print_verdict(refused.card)
        raise
    _print_verdict(card)
    typer.echo(f"{out}: {card.name} as {card.format}, {card.precision}")
    for note in card.notes:
        typer.echo(f"note: {note}")


def _print_verdict(card: "ExportCard") -> None:
    from foveal.export.verdict_card import HEADER, Verdict

    if card.verdict is not None:
        verdict = Verdict.model_validate(card.verdict)
        print_table(HEADER, verdict.rows(), title=f"{card.name} as {card.format} on {verdict.num_images} images")
