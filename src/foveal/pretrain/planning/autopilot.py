"""`hardware=auto`: the settings that follow from the number of images and the computer, each with its reason."""

import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foveal.engine.cpu import has_bf16
from foveal.errors import RecipeError
from foveal.pretrain.planning.cost import memory_bytes
from foveal.pretrain.recipe import Recipe, build_recipe
from foveal.pretrain.run import stored_values

_MEMORY_SHARE = 0.8  # the rest is for what no formula knows: the library's own buffers, fragmentation, other programs
_BATCHES = (32, 2048)
_PROTOTYPES = (256, 131_072)
_IMAGES_A_PROTOTYPE = 20
_MAX_WORKERS = 16
_MIN_NEIGHBOURS = 12  # of KoLeo: the fewest in a published run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hardware:
    """What a run has to itself: device "cpu" or "cuda", its memory in bytes, processor cores, and bf16 instructions."""

    device: str
    memory: int
    cores: int
    bf16: bool


class Choice(NamedTuple):
    """One setting, and why it has this value."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.reason}"


def this_hardware(device: torch.device) -> Hardware:
    """Return what this computer has, as this process may use it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return Hardware("cuda", memory, cores, torch.cuda.is_bf16_supported())
    return Hardware("cpu", free_memory(), cores, has_bf16())


def free_memory() -> int:
    """Return the bytes of main memory that are free for this process, its control group's limit included."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
        limit, used = (Path("/sys/fs/cgroup", f"memory.{name}").read_text().strip() for name in ("max", "current"))
        found += [int(limit) - int(used)] if limit != "max" else []
    except (OSError, KeyError, ValueError):
        pass  # not Linux, or no control groups
    return max(0, min(found))


def fit_to_hardware(
    recipe: Recipe, *, num_images: int, hardware: Hardware, keep: Iterable[str] = ()
) -> tuple[Recipe, list[Choice]]:
    """Return the recipe with its size fitted to the images and the hardware, and every choice with its reason.

    Args:
        recipe: what is not chosen here stays as it is.
        num_images: in the set.
        hardware: see `this_hardware`.
        keep: keys that somebody has set by hand, such as "batch_size"; they stay too.

    Raises:
        RecipeError: not even one image at a time fits into the memory.
    """
    keep = set(keep)
    choices: list[Choice] = []

    def choose(key: str, value: Any, reason: str) -> None:
        nonlocal recipe
        if key not in keep:
            recipe = _with(recipe, {key: value})
            choices.append(Choice(key, value, reason))

    choose(
        "precision",
        "bf16" if hardware.bf16 else "fp32",
        f"this {hardware.device} {'has' if hardware.bf16 else 'has no'} bf16 instructions",
    )
    batch = min(_within(math.sqrt(num_images), _BATCHES), 1 << (num_images.bit_length() - 1))
    choose("batch_size", batch, f"the square root of {num_images:,} images, as published recipes have it")
    for name in ("dino", "ibot") if recipe.heads.ibot else ("dino",):
        choose(
            f"heads.{name}.num_prototypes",
            _within(num_images / _IMAGES_A_PROTOTYPE, _PROTOTYPES),
            f"one for {_IMAGES_A_PROTOTYPE} images, as 65,536 are for ImageNet-1k",
        )
    micro, needed = _micro_batch(recipe, hardware, fixed="micro_batch_size" in keep)
    choose(
        "micro_batch_size",
        micro,
        f"needs about {needed / 1e9:.1f} of {hardware.memory / 1e9:.1f} GB; "
        f"{recipe.batch_size // micro} of them make a step",
    )
    if recipe.objective.koleo_weight and micro < recipe.batch_size:
        near = micro >= _MIN_NEIGHBOURS
        choose(
            "objective.koleo_group",
            micro if near else None,
            "neighbours inside a micro-batch need no second pass of the student"
            if near
            else f"a micro-batch has fewer than {_MIN_NEIGHBOURS} images to look among, so all of the batch are taken",
        )
    on_cpu = hardware.device == "cpu"
    workers = min(1 if on_cpu else _MAX_WORKERS, hardware.cores - 1)
    choose(
        "num_workers",
        workers,
        "one prepares images while the other cores train" if on_cpu and workers else "one core is left for the loop",
    )
    if "optimizer.base_lr" not in keep:
        rate = f"{recipe.optimizer.base_lr:g} for 1,024 images, so {recipe.lr:.2e} for {recipe.batch_size}"
        choices.append(Choice("optimizer.base_lr", recipe.optimizer.base_lr, f"the recipe's: {rate} (square root)"))
    return build_recipe(recipe.model_dump(), where="hardware=auto"), choices


def with_hardware(recipe: Recipe, *, num_images: int, device: torch.device) -> Recipe:
    """Return a recipe of `hardware=auto` with its choices made, and log them; others as they are.

    A run that is continued keeps the choices of its first start, on whatever hardware.
    """
    if recipe.hardware is None:
        return recipe
    stored = stored_values(recipe)
    fitted, choices = fit_to_hardware(
        recipe, num_images=num_images, hardware=this_hardware(device), keep=recipe.hardware.keep
    )
    if stored is not None:
        logger.info("hardware=auto: %s keeps the choices of its first start", recipe.out)
        values = {choice.key: _get(stored, choice.key) for choice in choices}
        return build_recipe(_with(recipe, values).model_dump(), where="hardware=auto")
    for choice in choices:
        logger.info("hardware=auto: %s", choice)
    return fitted


def _micro_batch(recipe: Recipe, hardware: Hardware, *, fixed: bool) -> tuple[int, int]:
    """Return the largest micro-batch that fits, by halving, and the bytes that it needs."""
    micro = recipe.micro_batch if fixed else recipe.batch_size
    while True:
        needed = sum(memory_bytes(_with(recipe, {"micro_batch_size": micro})).values())
        if fixed or needed <= _MEMORY_SHARE * hardware.memory:
            return micro, needed
        if micro == 1 or micro % 2:
            raise RecipeError(
                f"{micro} image{'s' * (micro > 1)} at a time need {needed / 1e9:.1f} GB and "
                f"{hardware.memory / 1e9:.1f} are there; "
                "choose a smaller backbone.variant or fewer heads.dino.num_prototypes"
            )
        micro //= 2


def _within(number: float, limits: tuple[int, int]) -> int:
    """The power of two that is nearest to `number`, inside the limits."""
    low, high = limits
    return int(min(max(2 ** round(math.log2(number)), low), high))


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _with(recipe: Any, changes: dict[str, Any]) -> Any:
    """Return a copy with dotted keys changed, unchecked: what is chosen later may be what makes them fit."""
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest:
            child = getattr(recipe, head)
            value = _with(child, {rest: value})
        recipe = recipe.model_copy(update={head: value})
    return recipe
