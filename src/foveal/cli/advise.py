"""`foveal advise`: which way to good features for one's own images, tried on a few of them."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.training import Overrides, training_progress

if TYPE_CHECKING:
    from foveal.pretrain.loop import Progress


def advise(
    images: Annotated[str, typer.Argument(help="A folder, a .txt list, shards or a saved image set; labels help.")],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="Run, model folder, checkpoint, or name in `foveal models`.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the study.", file_okay=False)] = Path("foveal-advice"),
    share: Annotated[float, typer.Option(help="Share of the images that the study uses, at least 300 of them.")] = 0.02,
) -> None:
    """Try frozen features, adaptation, LoRA, distillation and training from scratch on 1 to 5 % of the images.

    Prints the score, the gain over frozen features, the minutes that each took here, and the hours that the same number
    of epochs on all images would take.
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
    typer.echo(kind)
    typer.echo(f"{'':8} {'score':>6} {'gain':>6} {'minutes':>8} {'hours on all':>13}")
    for row in rows:
        numbers = f"{row.score:6.1f} {row.gain:+6.1f} {row.minutes:8.1f} {row.hours_on_all:13.1f}"
        typer.echo(f"{row.way:8} {numbers}  {row.note}".rstrip())
