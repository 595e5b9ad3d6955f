"""`foveal curate`: from a raw pile of images to a training set, all stages in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.curation import EngineOption, RayAddressOption, WorkersOption, make_runner
from foveal.cli.terminal import progress_of

if TYPE_CHECKING:
    from foveal.curate.run import Curated


def curate(
    pool: Annotated[str, typer.Argument(help="Images to choose from: a folder, a list, shards or an image set.")],
    out: Annotated[Path, typer.Option(help="Folder of the result, an image set that pretrain reads.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the recipe, such as model=MODEL.", metavar="key=value"),
    ] = None,
    seed: Annotated[
        list[str] | None, typer.Option(help="Images that the result should resemble; may be given again.")
    ] = None,
    keep_out: Annotated[
        list[str] | None, typer.Option(help="Images whose copies must not be in it; may be given again.")
    ] = None,
    target: Annotated[
        int | None, typer.Option(help="Images to end with, drawn evenly from clusters.  [default: all that are left]")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A built-in recipe or the path of a YAML file.")] = "curate_small",
    workers: WorkersOption = 1,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Audit a pool, drop duplicates and evaluation images, retrieve what resembles seeds, and balance what is left.

    Nothing is copied or deleted: the result is a list of images, with report.html beside it. Run the same command again
    to continue; with other settings only the stages that they touch are done again.
    """
    from foveal.curate.recipe import load_recipe
    from foveal.curate.run import curate as run

    runner = make_runner(workers, engine, ray_address)
    resolved = load_recipe(
        recipe,
        overrides or [],
        pool=pool,
        out=str(out),
        seeds=seed or [],
        keep_out=keep_out or [],
        target=target,
    )
    try:
        _tell(run(resolved, runner=runner, watch=progress_of))
    except (KeyboardInterrupt, SystemExit):
        typer.echo("finished stages stay; run the same command again to continue", err=True)
        raise


def _tell(curated: "Curated") -> None:
    summary, out = curated.summary, curated.out
    for warning in summary["warnings"]:
        typer.echo(f"note: {warning}", err=True)
    flow = ", ".join(f"{one['num_kept']:,} after {one['stage']}" for one in summary["flow"] if one["num_removed"])
    typer.echo(
        f"wrote {out}: {summary['num_images']:,} images, of {summary['num_pool']:,} in the pool ({flow}); "
        f"see {out / 'report.html'}"
    )
