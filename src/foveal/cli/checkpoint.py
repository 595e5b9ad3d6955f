"""`foveal checkpoint`: list, verify and export what a pretraining run has saved."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.pretrain.checkpoint import Checkpoint

COLUMNS = ("step", "bytes", "processes", "saved", "state")

checkpoint = typer.Typer(help="List, verify and export the checkpoints of a pretraining run.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder, out= of the recipe.")]


@checkpoint.command("ls")
def list_all(run: Run) -> None:
    """List the checkpoints of a run: step, bytes, processes that wrote it, time, and whether its files are all there.

    It looks at the manifest and at the size of each file; `foveal checkpoint verify` reads them.
    """
    from foveal.pretrain.checkpoint import find_damage

    lines = [_row(path, find_damage(path, sizes_only=True) or "complete") for path in _found(run)]
    _print(lines)


@checkpoint.command("verify")
def verify(run: Run) -> None:
    """Compare every file of every checkpoint with the sha256 in its manifest; exit code 2 where one is damaged."""
    from foveal.errors import CheckpointError
    from foveal.pretrain.checkpoint import find_damage

    problems = {path: find_damage(path) for path in _found(run)}
    _print([_row(path, problem or "intact") for path, problem in problems.items()])
    if damaged := [path.name for path, problem in problems.items() if problem]:
        raise CheckpointError(
            f"{len(damaged)} of {len(problems)} checkpoints are damaged: {', '.join(damaged)}; a run continues from the "
            "newest that is intact"
        )


@checkpoint.command("export")
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to write.")],
    step: Annotated[int | None, typer.Option(help="Which checkpoint; the newest intact one by default.")] = None,
    model: Annotated[str, typer.Option(help="Which model of a run with several, such as students/small.")] = "model",
) -> None:
    """Write the model folder of a checkpoint: backbone, card and self-supervised heads, as the run would have."""
    from foveal.pretrain.export import export_model

    card = export_model(_chosen(run, step), out, model=model)
    typer.echo(f"{out}: {card.name} after {card.lineage.get('steps')} steps")


def _found(run: Path) -> list[Path]:
    from foveal.errors import RunError
    from foveal.pretrain.checkpoint import list_checkpoints
    from foveal.pretrain.run import CHECKPOINTS, RECIPE

    if not (run / RECIPE).is_file():
        raise RunError(f"{run} is not a run folder: it has no {RECIPE}; give the out= of a pretraining run")
    paths = list_checkpoints(run / CHECKPOINTS)
    if not paths:
        raise RunError(f"{run} has no checkpoint yet; it saves one every checkpoints.every_steps steps and at its end")
    return paths


def _chosen(run: Path, step: int | None) -> "Checkpoint":
    from foveal.errors import CheckpointError
    from foveal.pretrain.checkpoint import checkpoint_path, find_damage, newest_intact, open_checkpoint

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


def _row(path: Path, state: str) -> tuple[str, ...]:
    from foveal.pretrain.checkpoint import MANIFEST, open_checkpoint

    step = str(int(path.name.partition("_")[2]))
    saved = datetime.fromtimestamp(path.stat().st_mtime).isoformat(sep=" ", timespec="seconds")
    try:
        found = open_checkpoint(path)
    except (OSError, ValueError):
        return (step, "-", "-", saved, state)
    written = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime).isoformat(sep=" ", timespec="seconds")
    return (step, f"{found.num_bytes:,}", str(found.num_processes), written, state)


def _print(rows: list[tuple[str, ...]]) -> None:
    from foveal.cli.terminal import print_table

    print_table(COLUMNS, rows)
