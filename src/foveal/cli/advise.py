"""`foveal advise`: which way to good features for one's own images, tried on a few of them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.training import Overrides, training_progress

if TYPE_CHECKING:
    from foveal.pretrain.loop import Progress
    from foveal.studies.advise import Row


def advise(
    images: Annotated[str, typer.Argument(help="A folder, a .txt list, shards or a saved image set; labels help.")],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="Run, model folder, checkpoint, or name in `foveal models`.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the study.", file_okay=False)] = Path("foveal-advice"),
    share: Annotated[float, typer.Option(help="Share of the images that the study uses, at least 300 of them.")] = 0.02,
) -> None:
    """Try frozen features, adaptation, LoRA, distillation and training from scratch on 1 to 5 % of the images.

    Prints the score, the gain over frozen features with its interval over the held-out images, the minutes that each
    took here, and the hours that the same number of epochs on all images would take.
    """
    from foveal.errors import FovealError
    from foveal.studies.advise import advise as study

    if not model:
        raise FovealError("--model is missing; give the backbone that you would start from")
    with ExitStack() as stack:
        ways: dict[str, Callable[[Progress], None]] = {}

        def listen(way: str, progress: "Progress") -> None:
            if way not in ways:
                typer.echo(f"{way}: {progress.total_steps} steps", err=True)
                stack.close()
                ways[way] = stack.enter_context(training_progress())
            ways[way](progress)

        rows, kind = study(images, model=model, out=out, share=share, overrides=tuple(overrides or ()), listener=listen)
    show(rows, kind)


def show(rows: Sequence["Row"], kind: str) -> None:
    """Print the table, and whether anything in it is more than noise."""
    typer.echo(kind)
    typer.echo(f"{'':8} {'score':>6} {'gain':>6} {'95 % interval':>16} {'minutes':>8} {'hours on all':>13}")
    for row in rows:
        interval = "" if row.way == "frozen" else f"{row.low:+.1f} to {row.high:+.1f}"
        numbers = f"{row.score:6.1f} {row.gain:+6.1f} {interval:>16} {row.minutes:8.1f} {row.hours_on_all:13.1f}"
        noise = "within noise" if row.within_noise and row.way != "frozen" else ""
        typer.echo(f"{row.way:8} {numbers}  {'; '.join(filter(None, (noise, row.note)))}".rstrip())
    if all(row.within_noise for row in rows):
        typer.echo(
            "Nothing is told apart from frozen features by so few images and steps: take them, or try again "
            "with a larger --share, more total_steps or more images"
        )
