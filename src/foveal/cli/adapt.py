"""`foveal adapt`: continue from a trained backbone on one's own images, and keep what it knows."""

from typing import Annotated

import typer

from foveal.cli.training import AllowChange, Overrides, Steps, train_and_tell


def adapt(
    model: Annotated[str, typer.Argument(help="Run, model folder, checkpoint, or name in `foveal models`.")],
    overrides: Overrides = None,
    recipe: Annotated[str, typer.Option(help="adapt, adapt_lora, or the path of a YAML file.")] = "adapt",
    steps: Steps = None,
    allow_change: AllowChange = None,
) -> None:
    """Continue from a trained backbone on one's own images; run the same command again to continue.

    New heads are warmed up first; the backbone moves slowly, its patches held to those of the start, and is judged
    every few hundred steps: by kNN where knn.train= and knn.test= give labelled images, else without labels. Where it
    has become worse than the start allows, the run ends with exit code 3, and RUN/model is the last one that passed.
    """
    from foveal.errors import RecipeError
    from foveal.pretrain.recipe import load_recipe

    given = overrides or []
    if any(override.partition("=")[0] in ("start", "start.model") for override in given):
        raise RecipeError("start= is the first argument here; leave it out")
    if "=" in model:
        raise RecipeError(f"'{model}' is no model; give one first: foveal adapt MODEL images=DIR out=RUN")
    if any(override.startswith("knn.") for override in given):
        given = ["knn.every_steps=200", *given]
    resolved = load_recipe(recipe, [f"start.model={model}", *given])
    if resolved.gate is None:
        raise RecipeError(f"recipe '{recipe}' has no gate, which adapt is for; add gate.every_steps=200")
    train_and_tell(resolved, steps=steps, allowed_changes=allow_change or ())
