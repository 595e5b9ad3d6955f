"""`foveal checkpoint`: list, verify and export what a run of pretraining or fine-tuning has saved."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.pretrain.checkpoints.reader import Checkpoint

COLUMNS = ("step", "bytes", "processes", "saved", "state")

checkpoint = typer.Typer(help="List, verify and export the checkpoints of a run.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


@checkpoint.command("ls")
def list_all(run: Run) -> None:
    """List the checkpoints of a run: step, bytes, processes that wrote it, time, and whether its files are all there.

    It looks at the manifest and at the size of each file; `foveal checkpoint verify` reads them.
    """
    _print([_row(path, _problem(path, sizes_only=True) or "complete") for path in _found(run)])


@checkpoint.command("verify")
def verify(run: Run) -> None:
    """Compare every file of every checkpoint with the sha256 in its manifest; exit code 2 where one is damaged."""
    from foveal.errors import CheckpointError

    problems = {path: _problem(path, sizes_only=False) for path in _found(run)}
    _print([_row(path, problem or "intact") for path, problem in problems.items()])
    if damaged := [path.name for path, problem in problems.items() if problem]:
        raise CheckpointError(
            f"damaged are {len(damaged)} of {len(problems)} checkpoints: {', '.join(damaged)}; a run continues from "
            "the newest that is intact"
        )


@checkpoint.command("export")
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to write.")],
    step: Annotated[int | None, typer.Option(help="Which checkpoint; the newest intact one by default.")] = None,
    model: Annotated[str, typer.Option(help="Which model of a run with several, such as students/small.")] = "model",
) -> None:
    """Write the model folder of a checkpoint: backbone, card and self-supervised heads, as the run would have."""
    from foveal.pretrain.checkpoints.export import export_model

    card = export_model(_chosen(run, step), out, model=model)
    typer.echo(f"{out}: {card.name} after {card.lineage.get('steps')} steps")


def _found(run: Path) -> list[Path]:
    from foveal.errors import RunError
    from foveal.finetune.folder import SETTINGS
    from foveal.pretrain.checkpoints.reader import list_checkpoints
    from foveal.pretrain.run import CHECKPOINTS, RECIPE

    if not (run / RECIPE).is_file() and not (run / SETTINGS).is_file():
        raise RunError(f"{run} is not a run folder: it has no {RECIPE} or {SETTINGS}; give the folder of a run")
    paths = list_checkpoints(run / CHECKPOINTS)
    if not paths:
        raise RunError(f"{run} has no checkpoint yet; it saves one every now and then, and at its end")
    return paths


def _chosen(run: Path, step: int | None) -> "Checkpoint":
    from foveal.errors import CheckpointError
    from foveal.pretrain.checkpoints.reader import checkpoint_path, find_damage, newest_intact, open_checkpoint

    paths = _found(run)
    if step is None:
        newest = newest_intact(paths[0].parent)
        assert newest is not None  # there are some, and if none is intact that is an error
        return newest
    path = checkpoint_path(paths[0].parent, step=step)
    if path not in paths:
        steps = ", ".join(str(int(each.name.partition("_")[2])) for each in paths)
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it has {steps}")
    if problem := find_damage(path):
        raise CheckpointError(f"{path}: {problem}; choose another step, `foveal checkpoint verify {run}` says which")
    return open_checkpoint(path)


def _problem(path: Path, *, sizes_only: bool) -> str | None:
    from foveal.errors import CheckpointError
    from foveal.pretrain.checkpoints.reader import find_damage

    try:
        return find_damage(path, sizes_only=sizes_only)
    except CheckpointError as error:  # of another format
        return str(error)


def _row(path: Path, state: str) -> tuple[str, ...]:
    from foveal.errors import CheckpointError
    from foveal.pretrain.checkpoints.reader import open_checkpoint

    step, saved = path.name.partition("_")[2].lstrip("0") or "0", datetime.fromtimestamp(path.stat().st_mtime)
    size, processes = "-", "-"
    try:
        found = open_checkpoint(path)
        size, processes = f"{found.num_bytes:,}", str(found.num_processes)
    except (OSError, ValueError, CheckpointError):
        pass  # `state` says so
    return (step, size, processes, saved.isoformat(sep=" ", timespec="seconds"), state)


def _print(rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, else one line each, separated by tabs."""
    if not sys.stdout.isatty():
        for row in (COLUMNS, *rows):
            typer.echo("\t".join(row))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("step", "bytes", "processes") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
