"""`foveal pretrain`: train a backbone on unlabelled images, or continue a run that was interrupted."""

from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.training import AllowChange, Overrides, Steps, train_and_tell

if TYPE_CHECKING:
    from foveal.pretrain.recipe import Recipe


def pretrain(
    overrides: Overrides = None,
    recipe: Annotated[str, typer.Option(help="A built-in recipe or the path of a YAML file.")] = "",
    steps: Steps = None,
    allow_change: AllowChange = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Measure a few steps, say what the run will take, and start nothing.")
    ] = False,
) -> None:
    """Train a backbone on unlabelled images; run the same command again to continue an interrupted run.

    images= is a folder, a .txt list, tar shards, Parquet files or a saved image set; out= is the run folder, and the
    model is in its subfolder model. On several GPUs: torchrun --nproc-per-node N -m foveal pretrain ...
    """
    from foveal.errors import RecipeError
    from foveal.pretrain.recipe import load_recipe, recipe_names

    if not recipe:
        raise RecipeError(f"--recipe is missing; built in: {', '.join(recipe_names())}; or give a YAML file")
    resolved = load_recipe(recipe, overrides or [])
    if preflight:
        _preflight(resolved)
        return
    train_and_tell(resolved, steps=steps, allowed_changes=allow_change or ())


def _preflight(recipe: "Recipe") -> None:
    from foveal.errors import RecipeError
    from foveal.pretrain.planning.preflight import preflight

    report = preflight(recipe)
    for name, text in report.rows():
        typer.echo(f"{name:12} {text}")
    if report.problems:
        raise RecipeError(f"{recipe.out} cannot be made like this: {'; '.join(report.problems)}")
