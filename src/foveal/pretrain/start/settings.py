"""The recipe's sections for runs that start from other weights, or go on for long."""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from foveal.pretrain.recipe import Recipe


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Start(_Settings):
    """The weights that the student and the teacher start from: a run, or anything that foveal loads.

    `identity` tells them from others; it is filled in when the run begins, and held to when it goes on.
    """

    model: str
    identity: str | None = None


class Gram(_Settings):
    """Hold the similarities between patches to those of an anchor, from `start_step` on; see `GramAnchor`.

    `anchor` is the run's start, or the teacher, copied at `start_step` and then up to `max_refreshes` times, every
    `refresh_every_steps` steps. The anchor sees the global crops enlarged by `resolution_factor`. Published for a run
    of a million steps: weight 2, teacher, every 10,000 steps, 3 times, factor 2.
    """

    weight: float = Field(default=2.0, gt=0)
    anchor: Literal["start", "teacher"]
    start_step: int = Field(default=0, ge=0)
    refresh_every_steps: int | None = Field(default=None, gt=0)
    max_refreshes: int = Field(default=3, ge=0)
    resolution_factor: int = Field(default=1, ge=1, le=4)

    @model_validator(mode="after")
    def _check(self) -> "Gram":
        if self.anchor == "start" and self.refresh_every_steps:
            raise ValueError("gram.refresh_every_steps has no effect with gram.anchor=start; leave it out")
        return self


class LoRA(_Settings):
    """Train low-rank changes of the attention's weights instead of the backbone; null trains all of it."""

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16.0, gt=0)


class Gate(_Settings):
    """Every `every_steps` steps and at the end the features are held against those of the start; null: they are not.

    With `knn` its accuracy may fall by `max_knn_drop` points. Without, `min_agreement` of the nearest neighbours have
    to stay the start's, and the effective rank at `min_rank_share` of the start's, on up to `num_images` images of the
    set `images` (null: of the run's own). Features beyond a limit end the run; its model is the last that passed.
    """

    every_steps: int = Field(gt=0)
    max_knn_drop: float = Field(default=2.0, ge=0)
    min_agreement: float = Field(default=0.3, ge=0, le=1)
    min_rank_share: float = Field(default=0.5, ge=0, le=1)
    images: str | None = None
    num_images: int = Field(default=1000, gt=1)
    num_neighbours: int = Field(default=10, gt=0)


def start_misfit(recipe: "Recipe") -> str:
    """Return what in a recipe does not fit its start, or has no effect, or an empty string."""
    gram, lora = recipe.gram, recipe.lora
    used = {
        "gram.anchor=start": gram is not None and gram.anchor == "start",
        "lora": lora is not None,
        "gate": recipe.gate is not None,
        "optimizer.freeze_backbone_steps": recipe.optimizer.freeze_backbone_steps > 0,
    }
    if recipe.start is None and any(used.values()):
        names = " and ".join(name for name, is_used in used.items() if is_used)
        return f"{names} without start: random weights are not worth keeping; give start="
    if recipe.distill and (gram or lora):
        return f"{'gram' if gram else 'lora'} has no effect with distill; leave one of the two out"
    sharded = {**used, "gram": gram is not None}
    if recipe.parallel.strategy == "fsdp" and any(sharded.values()):
        names = " and ".join(name for name, is_used in sharded.items() if is_used)
        return f"{names} with parallel.strategy=fsdp: they need whole networks in each process; use ddp"
    if lora and lora.rank > recipe.backbone.width:
        return f"lora.rank={lora.rank} is above the backbone's width {recipe.backbone.width}; use that or less"
    if gram and gram.start_step >= recipe.total_steps:
        return f"gram.start_step={gram.start_step} is not below total_steps={recipe.total_steps}; start it earlier"
    return ""
