"""`foveal demo`: the whole line in a few minutes, on photographs that are already on the disk."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.training import Overrides, training_progress


def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the demo.", file_okay=False)] = Path("foveal-demo"),
    images: Annotated[str | None, typer.Option(help="Your own images instead of the packaged photographs.")] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Go on to explore the held-out crops in the browser, until Ctrl-C.")
    ] = False,
) -> None:
    """Pretrain a small backbone on real photographs and show what it learned, without labels and without a network."""
    from foveal.cli.explore import explore
    from foveal.cli.pages import check_can_serve
    from foveal.studies.demo import run_demo

    if open_page:
        check_can_serve()
    with training_progress() as listener:
        result = run_demo(
            out,
            images=images,
            overrides=tuple(overrides or ()),
            listener=listener,
            say=lambda text: typer.echo(text, err=True),
        )
    numbers = ", ".join(f"{name} {value:.1f} %" for name, value in result.accuracy.items())
    typer.echo(f"kNN top-1 (k=20): {numbers}")
    typer.echo(f"{result.seconds:.0f} s; page: {result.page}")
    if open_page:
        explore(str(result.held_out), model=str(result.model), out=out / "explore", port=0)
