"""What verbs show: progress, tables of results, and files written whole."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from foveal.errors import FovealError
from foveal.files import write_atomically

if TYPE_CHECKING:
    from foveal.evaluate.results import Measure


def is_first_process() -> bool:
    """Tell whether this process prints: of those that torchrun or a batch system started for one run, the first."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def progress_of(label: str, *, every_s: float = 10.0) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (done, total): on stderr a bar, or away from a terminal a line every `every_s`."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            typer.echo(f"{label}: {done}/{total}", err=True)

    yield line


def print_measures(measures: "Sequence[Measure]", *, title: str) -> None:
    """Print numbers with their intervals: a table on a terminal, else one line each, separated by tabs."""
    rows = [(one.metric, one.text, one.unit, one.interval) for one in measures]
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    print_table(("metric", "value", "unit", "95 % interval"), rows, title=title)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> None:
    """Print rows of words: a table on a terminal, else one line each, separated by tabs."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def typed_options(context: typer.Context) -> list[str]:
    """Return the options that were typed, in their long form and in the order of the help."""
    found = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.param_type_name == "option" and source is not None and source.name == "COMMANDLINE":
            found.append(max(parameter.opts, key=len))
    return found


def check_file_target(path: Path) -> Path:
    """Return `path` when a file can be put there; else FovealError, before any long work is done for it."""
    if path.is_dir():
        raise FovealError(f"{path} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise FovealError(f"the folder {path.absolute().parent} does not exist; create it first")
    return path


def check_outside(out: Path, images: Path) -> None:
    """Refuse a result inside the folder that is searched for images: its files would be taken for images or shards."""
    from foveal.images.imageset import CARD_NAME

    if images.is_dir() and not (images / CARD_NAME).is_file() and out.resolve().is_relative_to(images.resolve()):
        place = images.resolve().parent / out.name
        raise FovealError(f"{out} lies inside {images}, which is searched for images; choose another place: {place}")


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; FovealError when it cannot be written."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise FovealError(f"{path} cannot be written ({error}); free space or choose another place") from error
