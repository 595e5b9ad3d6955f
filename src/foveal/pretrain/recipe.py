"""Recipes: typed settings, read from YAML, changed by `key=value`, stored resolved with the run."""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from foveal.backbone.variants import BackboneConfig, multiple_of_patch
from foveal.errors import RecipeError
from foveal.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from foveal.pretrain.data.views import ViewSettings
from foveal.pretrain.distillation.foreign import fill_from_library
from foveal.pretrain.distillation.settings import DistillSettings, misfit
from foveal.pretrain.network import HeadSize
from foveal.pretrain.start.settings import Gate, Gram, LoRA, Start, start_misfit
from foveal.pretrain.start.weights import fill_from_start
from foveal.pretrain.step import ObjectiveSettings
from foveal.settings import Settings, built_in_recipes, check_known, keys_of, override, problem, read_recipe


class Head(Settings):
    """A projection head: Linear, GELU, Linear, GELU, Linear to the bottleneck, then the prototypes."""

    num_prototypes: int = Field(default=65536, gt=1)
    bottleneck: int = Field(default=256, gt=0)
    hidden: int = Field(default=2048, gt=0)

    def size(self) -> HeadSize:
        """Return the sizes as the training step takes them."""
        return HeadSize(**self.model_dump())


class Heads(Settings):
    """The DINO head, and the iBOT head; null ties the two."""

    dino: Head = Head()
    ibot: Head | None = None


class Objective(Settings):
    """Weights and temperatures of the terms; see `foveal.objectives`.

    batch_scope: the images that Sinkhorn-Knopp balances and among which KoLeo looks for neighbours: those of a step, or
    of a micro-batch, which costs less. koleo_group: fewer neighbours, images that follow each other in the batch.
    """

    dino_weight: float = Field(default=1.0, ge=0)
    ibot_weight: float = Field(default=1.0, ge=0)
    koleo_weight: float = Field(default=0.1, ge=0)
    centering: Literal["sinkhorn_knopp", "centering"] = "sinkhorn_knopp"
    student_temperature: float = Field(default=0.1, gt=0)
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    batch_scope: Literal["step", "micro_batch"] = "step"
    koleo_group: int | None = Field(default=None, gt=1)

    def settings(self) -> ObjectiveSettings:
        """Return the values as the training step takes them."""
        return ObjectiveSettings(**self.model_dump())


class Normalise(Settings):
    """Mean and standard deviation of each channel, in shares of full scale (0..1).

    null: ImageNet's for 3 channels; for others they are measured over up to 1,000 images when a run starts, and written
    to its recipe and card.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Masks(Settings):
    """Block masking: the share of crops with a mask, and the range of their stratified ratios."""

    probability: float = Field(default=0.5, ge=0, le=1)
    ratio_min: float = Field(default=0.1, ge=0, le=1)
    ratio_max: float = Field(default=0.5, ge=0, le=1)


class Teacher(Settings):
    """EMA momentum (cosine over the run) and temperature (linear, then constant)."""

    momentum_start: float = Field(default=0.992, ge=0, le=1)
    momentum_end: float = Field(default=1.0, ge=0, le=1)
    temperature_start: float = Field(default=0.04, gt=0)
    temperature_end: float = Field(default=0.07, gt=0)
    temperature_warmup_steps: int = Field(default=37_500, ge=0)


class Optimizer(Settings):
    """AdamW. `base_lr` is for 1,024 images a step: the rate is base_lr * sqrt(batch_size / 1024)."""

    base_lr: float = Field(default=4e-3, gt=0)
    min_lr: float = Field(default=1e-6, ge=0)
    warmup_steps: int = Field(default=12_500, ge=0)
    freeze_last_layer_steps: int = Field(default=1250, ge=0)
    weight_decay_start: float = Field(default=0.04, ge=0)
    weight_decay_end: float = Field(default=0.4, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=3.0, gt=0)
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    # The backbone's rate beside that of the heads. It is 0, and warms up later, for as long as the backbone is frozen.
    backbone_lr_multiplier: float = Field(default=1.0, gt=0)
    freeze_backbone_steps: int = Field(default=0, ge=0)
    patch_embed_lr_multiplier: float = Field(default=0.2, gt=0)


class Checkpoints(Settings):
    """A checkpoint every `every_steps` steps, of which the newest `keep` stay, and at the end or an interruption."""

    every_steps: int = Field(default=1250, gt=0)
    keep: int = Field(default=3, gt=0)


class KNN(Settings):
    """kNN on a labelled set during training; null switches it off."""

    train: str
    test: str
    every_steps: int = Field(gt=0)
    k: int = Field(default=20, gt=0)


class Parallel(Settings):
    """How several processes share a run, and how a network lies in memory; see docs/scale.md.

    strategy: ddp holds all of every network in each process; fsdp spreads weights, gradients, optimizer state and the
        teacher over them, for networks that do not fit.
    canonical: gradients and batch statistics are summed in the order of the micro-batches, so that any number of
        processes gives the same bits; with ddp on CPUs.
    compile: blocks are compiled (torch.compile).
    recompute: blocks are run again in the backward pass instead of keeping what they hold (activation checkpointing).
    timeout_s: how long a process waits for a message of another that is alive, as while the first measures kNN.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    canonical: bool = False
    compile: bool = False
    recompute: bool = False
    timeout_s: float = Field(default=1800.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "Parallel":
        if self.canonical and self.strategy == "fsdp":
            raise ValueError("parallel.canonical=true needs parallel.strategy=ddp: shards are summed in no fixed order")
        return self


class Health(Settings):
    """The health page, measured every `every_steps` steps and at the end; null switches it off.

    `images` is a number of the images trained on, or the path of a set kept apart.
    """

    every_steps: int = Field(default=500, gt=0)
    images: Annotated[int, Field(gt=1)] | str = 256


class Features(Settings):
    """Preprocessing that the finished model's card asks for; null follows views.global_size (resize 256/224 of it)."""

    crop_size: int | None = Field(default=None, gt=0)
    resize_size: int | None = Field(default=None, gt=0)


class Autopilot(Settings):
    """`hardware=auto`: batch, prototypes, precision and workers are fitted to images and computer when a run starts.

    keep: keys that stay as they are; on the command line, those that are given there.
    """

    keep: tuple[str, ...] = ()


class Recipe(Settings):
    """One pretraining run, whole. The order here is the order in the YAML files."""

    images: str
    out: str
    start: Annotated[
        Start | None, BeforeValidator(lambda value: {"model": value} if isinstance(value, str) else value)
    ] = None
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    hardware: Annotated[Autopilot | None, BeforeValidator(lambda value: {} if value == "auto" else value)] = None
    precision: Literal["fp32", "bf16"] = "fp32"
    total_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    # Images of one forward pass; the rest of the batch is accumulated. null: the whole batch at once.
    micro_batch_size: int | None = Field(default=None, gt=0)
    num_workers: int = Field(default=0, ge=0)
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    log_every_steps: int = Field(default=1, gt=0)
    backbone: BackboneConfig
    heads: Heads = Heads()
    objective: Objective = Objective()
    gram: Gram | None = None
    lora: LoRA | None = None
    views: ViewSettings = ViewSettings()
    normalise: Normalise = Normalise()
    masks: Masks = Masks()
    teacher: Teacher = Teacher()
    optimizer: Optimizer = Optimizer()
    checkpoints: Checkpoints = Checkpoints()
    parallel: Parallel = Parallel()
    features: Features = Features()
    distill: DistillSettings | None = None
    knn: KNN | None = None
    health: Health | None = Health()
    gate: Gate | None = None
    # Besides metrics.jsonl and TensorBoard, which are always written.
    loggers: tuple[Literal["wandb", "mlflow"], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        patch = self.backbone.patch_size
        for name in ("global_size", "local_size"):
            size = getattr(self.views, name)
            if size % patch and (name == "global_size" or self.views.num_local):
                raise ValueError(multiple_of_patch(f"views.{name}", size, patch))
        for global_size, local_size, _ in self.views.other_sizes:
            for size in (global_size, *([local_size] if self.views.num_local else [])):
                if size % patch:
                    raise ValueError(multiple_of_patch("views.other_sizes", size, patch))
        if self.views.photometric == "device" and self.backbone.channels != 3:
            raise ValueError(
                f"views.photometric=device is written for RGB, and backbone.channels={self.backbone.channels}; "
                "use views.photometric=workers"
            )
        crop_size = self.features.crop_size or self.views.global_size
        if crop_size % patch:
            raise ValueError(multiple_of_patch("features.crop_size", crop_size, patch))
        if self.features.resize_size and self.features.resize_size < crop_size:
            raise ValueError(
                f"features.resize_size={self.features.resize_size} is below the crop size {crop_size}; "
                f"use {crop_size} or more"
            )
        if self.batch_size % self.micro_batch:
            sizes = [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]
            near = sorted(sizes, key=lambda n: abs(n - self.micro_batch))[:2]
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}; the "
                f"micro-batches of a step must be equal: use {' or '.join(map(str, sorted(near)))}"
            )
        if self.masks.ratio_min > self.masks.ratio_max:
            raise ValueError(f"masks.ratio_min={self.masks.ratio_min} is above masks.ratio_max={self.masks.ratio_max}")
        frozen = self.optimizer.freeze_backbone_steps
        frozen = 0 if frozen == self.total_steps else frozen  # heads alone, for the whole run: nothing warms up later
        for name, steps in (
            ("optimizer.warmup_steps", self.optimizer.warmup_steps),
            ("optimizer.freeze_backbone_steps + optimizer.warmup_steps", frozen + self.optimizer.warmup_steps),
            ("teacher.temperature_warmup_steps", self.teacher.temperature_warmup_steps if self.has_heads else 0),
        ):
            if steps > self.total_steps:
                raise ValueError(f"{name}={steps} is above total_steps={self.total_steps}; shorten it with the run")
        return self

    @model_validator(mode="after")
    def _check_koleo(self) -> "Recipe":
        group, weight = self.objective.koleo_group, self.objective.koleo_weight
        size, images = (
            ("batch_size", self.batch_size)
            if self.objective.batch_scope == "step"
            else ("micro_batch_size", self.micro_batch)
        )
        if weight and images == 1 and self.has_heads:
            raise ValueError(
                f"objective.koleo_weight has no effect with {size}=1 (an image needs a neighbour); "
                f"set objective.koleo_weight=0 or a larger {size}"
            )
        if group and not weight:
            raise ValueError("objective.koleo_group has no effect with objective.koleo_weight=0; leave it out")
        if group and images % group:
            raise ValueError(f"{size}={images} is not a multiple of objective.koleo_group={group}; groups are equal")
        return self

    @model_validator(mode="after")
    def _check_sections(self) -> "Recipe":
        if problem := misfit(self) or start_misfit(self):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_normalise(self) -> "Recipe":
        mean, std, channels = self.normalise.mean, self.normalise.std, self.backbone.channels
        if (mean is None) != (std is None):
            raise ValueError("normalise.mean and normalise.std belong together; give both, or neither")
        if mean is not None and std is not None and not len(mean) == len(std) == channels:
            raise ValueError(
                f"normalise.mean has {len(mean)} numbers and normalise.std {len(std)}; "
                f"backbone.channels={channels} needs {channels} each"
            )
        if std is not None and min(std) <= 0:
            raise ValueError(f"normalise.std={list(std)}; every number must be above 0")
        return self

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean of each channel; for other than 3, only of a recipe whose statistics are given or measured."""
        return self.normalise.mean or _imagenet(IMAGENET_MEAN, self.backbone.channels)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel; see `channel_mean`."""
        return self.normalise.std or _imagenet(IMAGENET_STD, self.backbone.channels)

    @property
    def has_heads(self) -> bool:
        """Whether the objective is that of heads and their prototypes."""
        return self.distill is None or self.distill.objective != "features"

    @property
    def micro_batch(self) -> int:
        """Images of one forward pass."""
        return self.micro_batch_size or self.batch_size

    @property
    def lr(self) -> float:
        """Peak learning rate: base_lr sqrt(batch_size / 1024)."""
        return self.optimizer.base_lr * math.sqrt(self.batch_size / 1024)


def _imagenet(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels != len(values):
        raise RecipeError(f"backbone.channels={channels} has no standard statistics; set normalise.mean and .std")
    return values


def recipe_names() -> list[str]:
    """Return the names of the recipes of pretraining that come with the package."""
    return built_in_recipes(_OF_ALL)


_OF_ALL = "total_steps"  # a key that every recipe of pretraining has, and no other recipe

# Paths and names: taken from the command line as they are, so that images=2024 and images=*.tar mean what they say.
_TEXTS = {
    *("images", "out", "start", "start.model", "device", "knn.train", "knn.test", "gate.images"),
    *("backbone.variant", "distill.teacher"),
}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or from a YAML file and apply `key=value` overrides.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        overrides: like "optimizer.base_lr=1e-3"; values are YAML.

    Raises:
        RecipeError: unknown recipe or key (the nearest is named), a wrong value, or settings that do not fit together.
        WeightsError, DownloadError: the `start` cannot be read.

    Example:
        >>> load_recipe("demo", ["images=photos", "out=run", "batch_size=32"]).batch_size
        32
    """
    values = read_recipe(name, key=_OF_ALL)
    override(values, overrides, known=keys_of(Recipe), texts=_TEXTS, example="batch_size=64")
    if values.get("hardware") == "auto":
        keep = [override.partition("=")[0] for override in overrides]
        values["hardware"] = {"keep": keep}
        if "micro_batch_size" not in keep:  # the recipe's own need not fit to a batch that is given
            values.pop("micro_batch_size", None)
        if "objective.koleo_group" not in keep and "objective" in values:
            values["objective"].pop("koleo_group", None)
    return build_recipe(fill_from_library(fill_from_start(values)), where=f"recipe '{name}'")


def check_keys(keys: Iterable[str]) -> None:
    """Raise a RecipeError, naming the nearest, for a key that recipes do not have."""
    check_known(keys, keys_of(Recipe))


def build_recipe(values: dict[str, Any], *, where: str) -> Recipe:
    """Check plain values and return the recipe; RecipeError names every problem."""
    missing = [key for key in ("images", "out") if not values.get(key)]
    if missing:
        raise RecipeError(f"{where} needs {' and '.join(missing)}; add {' '.join(f'{m}=...' for m in missing)}")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_problem(detail) for detail in error.errors())) from error


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _problem(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if (key == "backbone" and not detail["input"]) or (key == "backbone.width" and detail["type"] == "missing"):
        return "no network is named; add start=MODEL, to continue from that, or backbone.variant=..."
    return problem(detail, keys_of(Recipe))
