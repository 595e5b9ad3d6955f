"""From a recipe as it is written to one that can run: what images and computer add, and what they refuse."""

import logging

import torch

from foveal.engine.cpu import has_bf16
from foveal.errors import BadImageError, RecipeError
from foveal.images.imageset import ImageSet
from foveal.images.statistics import channel_statistics
from foveal.pretrain.data.loader import check_deal
from foveal.pretrain.planning.autopilot import with_hardware
from foveal.pretrain.processes.launch import check_alike
from foveal.pretrain.processes.parallel import ALONE, World
from foveal.pretrain.recipe import Normalise, Recipe, build_recipe
from foveal.pretrain.run import stored_normalise
from foveal.pretrain.start.settings import Start
from foveal.pretrain.start.weights import StartWeights, check_start, open_start

_STATISTICS_IMAGES = 1000  # measured for the statistics of channels other than RGB
_SIZED_IMAGES = 16

logger = logging.getLogger(__name__)


def ready_recipe(recipe: Recipe, images: ImageSet, world: World = ALONE) -> tuple[Recipe, StartWeights | None]:
    """Return the recipe that all processes run, all that images and computer decide filled in, and its start.

    What is measured is measured by the first process.

    Raises:
        RecipeError: an unknown device, more images a batch than there are, crops larger than the images, a network that
            does not fit the memory or the weights it is to start from, a batch that cannot be dealt to the processes.
        ImageSetError: a channel without variation.
    """
    check_alike({"images": images.hash, **recipe.model_dump(mode="json")}, world)
    if world.is_main:
        recipe = _filled(recipe, images)
    if world.size > 1:
        recipe = build_recipe(world.gather(recipe.model_dump(mode="json"))[0], where="the recipe of process 0")
    check_deal(recipe, world)
    start = open_start(recipe.start.model) if recipe.start else None
    return with_start(recipe, start), start


def _filled(recipe: Recipe, images: ImageSet) -> Recipe:
    device = device_of(recipe)
    recipe = with_hardware(recipe, num_images=len(images), device=device)
    if recipe.precision == "bf16" and device.type == "cpu" and not has_bf16():
        logger.warning("precision=bf16 on a CPU without bf16 instructions is very slow; use precision=fp32 there")
    _check_number(recipe, images)
    _check_sizes(recipe, images)
    return with_statistics(recipe, images)


def with_start(recipe: Recipe, start: StartWeights | None) -> Recipe:
    """Return the recipe with the identity of its start; RecipeError where that does not fit, or is another by now."""
    if recipe.start is None or start is None:
        return recipe
    check_start(start, recipe.backbone)
    if recipe.start.identity not in (None, start.identity):
        raise RecipeError(
            f"start={recipe.start.model} holds other weights than those this recipe was made for; give those, or leave "
            "start.identity out"
        )
    return recipe.model_copy(update={"start": Start(model=recipe.start.model, identity=start.identity)})


def device_of(recipe: Recipe) -> torch.device:
    """Return the device that a recipe names; RecipeError where it cannot be used."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=recipe.device).device
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"device={recipe.device} cannot be used: {str(error).splitlines()[0]}; use auto, cpu or cuda"
        ) from error


def with_statistics(recipe: Recipe, images: ImageSet) -> Recipe:
    """Return the recipe with the statistics of its channels: those given, those of its run so far, or measured now."""
    if recipe.backbone.channels == 3 or recipe.normalise.mean is not None:
        return recipe
    normalise = stored_normalise(recipe)
    if normalise is None:
        mean, std = channel_statistics(images, channels=recipe.backbone.channels, max_images=_STATISTICS_IMAGES)
        normalise = Normalise(mean=tuple(mean), std=tuple(std))
    return recipe.model_copy(update={"normalise": normalise})


def _check_number(recipe: Recipe, images: ImageSet) -> None:
    if recipe.batch_size > len(images):
        raise RecipeError(
            f"batch_size={recipe.batch_size} and {recipe.images} holds {len(images):,} image{'s' * (len(images) > 1)}: "
            "a step would show an image twice, and KoLeo would push it away from itself; "
            + (f"use batch_size={len(images)} or less" if len(images) > 1 else "add images")
        )


def _check_sizes(recipe: Recipe, images: ImageSet) -> None:
    """Refuse crops that enlarge every image; a sample of them is opened, and unreadable ones are not counted."""
    if recipe.views.enlarge:
        return
    longest = 0
    for index in range(0, len(images), max(1, len(images) // _SIZED_IMAGES)):
        try:
            image = images.decode(index, channels=recipe.backbone.channels)
        except BadImageError:
            continue
        longest = max(longest, *image.shape[:2])
        if longest >= recipe.views.global_size:
            return
    if longest:
        patch = recipe.backbone.patch_size
        raise RecipeError(
            f"views.global_size={recipe.views.global_size} is larger than the images, which are at most {longest} "
            f"pixels long; use {max(longest // patch, 1) * patch}, or views.enlarge=true to enlarge them"
        )
