"""What the verbs that train share: their options, their progress, and how they end."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.terminal import is_first_process

if TYPE_CHECKING:
    from foveal.pretrain.loop import Progress
    from foveal.pretrain.recipe import Recipe

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value of the recipe, such as total_steps=500 batch_size=64.", metavar="key=value"),
]
Steps = Annotated[
    int | None, typer.Option(help="Stop after so many steps of this call; the schedules do not change.", min=1)
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(help="A recipe key that may differ from the run's so far; repeat it for more.", metavar="KEY"),
]

GATE_FAILED = 3  # exit code: the run has ended and its model is sound, but not the one that was asked for


def train_and_tell(recipe: "Recipe", *, steps: int | None, allowed_changes: Sequence[str]) -> None:
    """Train as the recipe says, tell how it goes and how it ended, and leave with the exit code of that."""
    from foveal.pretrain.loop import pretrain as train

    with training_progress() as listener:
        outcome = train(recipe, stop_after=steps, listener=listener, allowed_changes=allowed_changes)
    done = f"step {outcome.step} of {recipe.total_steps}; model: {outcome.run / 'model'}"
    if outcome.stopped_by is not None:
        done = f"stopped and saved at {done}; run the same command again to continue"
    failed = outcome.judgements[-1].failed if outcome.judgements else ""
    if is_first_process():
        for judgement in outcome.judgements:
            scores = "  ".join(f"{name} {value:.4g}" for name, value in sorted(judgement.scores.items()))
            typer.echo(f"step {judgement.step:6d}  {scores}  {judgement.failed or 'kept'}")
        if failed:
            passed = max(found.step for found in outcome.judgements if not found.failed)
            whose = f"that of step {passed}" if passed else "the start"
            done = f"ended at step {outcome.judgements[-1].step}: {failed}; {outcome.run / 'model'} is {whose}. "
            done += "To get further, start another run with a lower optimizer.backbone_lr_multiplier"
        typer.echo(done)
    if outcome.stopped_by == signal.SIGINT:
        raise typer.Exit(128 + signal.SIGINT)  # as a shell tells it; a batch system that asked for the end sees success
    if failed:
        raise typer.Exit(GATE_FAILED)


@contextmanager
def training_progress(*, every_s: float = 10.0) -> Iterator[Callable[["Progress"], None]]:
    """Give a listener for the training loop: on stderr a bar, or away from a terminal a line every `every_s`."""
    if sys.stderr.isatty() and is_first_process():
        with _bar() as listener:
            yield listener
        return
    last = time.monotonic()
    first: list[tuple[float, int]] = []

    def line(progress: "Progress") -> None:
        nonlocal last
        now = time.monotonic()
        first.append((now, progress.step)) if not first else None
        if now - last < every_s and progress.step != progress.total_steps:
            return
        last = now
        elapsed, steps = now - first[0][0], progress.step - first[0][1]
        left = (
            timedelta(seconds=round(elapsed / steps * (progress.total_steps - progress.step))) if steps else "unknown"
        )
        typer.echo(f"step {progress.step}/{progress.total_steps}  {_numbers(progress)}  left {left}", err=True)

    yield line


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("pretrain", total=None, numbers="first step ...")
        yield lambda progress: bar.update(
            task, completed=progress.step, total=progress.total_steps, numbers=_numbers(progress)
        )


def _numbers(progress: "Progress") -> str:
    text = f"loss {progress.metrics['loss']:.3f}  {progress.images_per_s:.1f} images/s"
    waited = progress.metrics.get("data_wait", 0.0)
    text += f" ({waited:.0%} waiting for data)" if waited >= 0.1 else ""
    return text + (f"  knn {progress.metrics['knn']:.1f} %" if "knn" in progress.metrics else "")
