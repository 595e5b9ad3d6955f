"""What all protocols share: the options of their results, and the call that prints and keeps them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.terminal import print_measures

if TYPE_CHECKING:
    from foveal.evaluate.results import Measure
    from foveal.features.extract import Model

OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder that collects results: JSONL, CSV and a page for all protocols.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of everything drawn, and of the intervals.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="Images at a time.", min=1)]


def check_results(out: Path | None) -> None:
    """Refuse a folder that cannot keep results; call it before any long work."""
    if out is not None:
        from foveal.evaluate.report import check_out

        check_out(out)


def skip_finished(context: typer.Context, *, model: "Model", data_hash: str, out: Path | None) -> None:
    """End the command where it runs as one of many, and its rows for this model and data are there already."""
    if out is None or not context.obj.skip_finished:
        return
    from foveal.evaluate.report import read_rows

    wanted = (context.obj.command, model.identity, data_hash)
    if any((row.command, row.model_hash, row.data_hash) == wanted for row in read_rows(out)):
        raise typer.Exit


@contextmanager
def unfinished_work(
    context: typer.Context, *, model: "Model", data_hash: str, out: Path | None
) -> Iterator[Path | None]:
    """Give a folder below `out` for the work of this command, so that the same command goes on after an interruption.

    It is named after the command, the model and the data. It is removed when the command ends well, and kept otherwise.
    See `skip_finished` too.
    """
    skip_finished(context, model=model, data_hash=data_hash, out=out)
    if out is None:
        yield None
        return
    key = sha256("\n".join((context.obj.command, model.identity, data_hash)).encode()).hexdigest()
    folder = out / "unfinished" / f"{context.info_name}-{key[:16]}"
    try:
        yield folder
    except (KeyboardInterrupt, SystemExit):
        if folder.is_dir() and any(folder.iterdir()):
            typer.echo("what was done so far is kept; run the same command again to go on", err=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # work of other commands is in it
        folder.parent.rmdir()


def report_results(
    context: typer.Context,
    measures: "Sequence[Measure]",
    *,
    protocol: str,
    model: "Model",
    data: str,
    data_hash: str,
    out: Path | None,
    title: str,
) -> None:
    """Print what a protocol found and add it to the results in `out`.

    Args:
        context: of the command.
        measures: what was found.
        protocol: its name, such as "knn"; variants that must not be compared have names of their own.
        model: that was measured.
        data: name of the data; public ones by the name under which figures are published.
        data_hash: of the image sets.
        out: folder of results; None only prints.
        title: of the printed table.
    """
    print_measures(measures, title=title)
    if out is None:
        return
    from foveal.evaluate.report import add_rows, rows_of

    rows = rows_of(
        measures,
        protocol=protocol,
        data=data,
        data_hash=data_hash,
        model=model.card.name,
        model_hash=model.identity,
        command=context.obj.command,
    )
    typer.echo(f"results in {add_rows(out, rows)}", err=True)
