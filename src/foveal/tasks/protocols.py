"""How heads are fitted: the settings, and their values for labels, masks and depth; for the last two as published."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from foveal.errors import FovealError
from foveal.images.preprocess import Size, sides
from foveal.tasks.head import Task

Schedule = Literal["linear", "one_cycle", "poly"]


@dataclass(frozen=True)
class FitSettings:
    """How a head is fitted; the defaults are the published protocol for masks on fewer steps. See `fit_settings`.

    Attributes:
        steps: optimizer updates.
        batch_size: pictures a step.
        learning_rate: of AdamW, at its highest; see `learning_rate_at`.
        weight_decay: of AdamW.
        beta2: of AdamW; the first is 0.9.
        schedule: how the rate falls: linearly, along half a cosine, or as a power.
        warm_up: share of the steps over which the rate rises.
        clip: largest norm of the gradient; None does not clip.
        size: short side of the pictures, pixels; None is their own.
        crop_size: of random crops, pixels, a side or (height, width); None keeps whole pictures as they are, whose
            features are then computed once and kept in memory: the same losses, far fewer passes of the backbone.
        scales: of the random resizing before a crop.
        distort: change the colours of crops, and turn those of depth a little; see `foveal.tasks.crops`.
        max_class_share: a crop of which one class fills this share or more is drawn again, up to ten times.
        seed: of everything drawn.
        save_every_s: seconds between states from which fitting resumes.
    """

    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    beta2: float = 0.999
    schedule: Schedule = "linear"
    warm_up: float = 0.0375  # 1,500 of 40,000 steps
    clip: float | None = None
    size: int | None = None
    crop_size: Size | None = None
    scales: tuple[float, float] = (0.5, 2.0)
    distort: bool = True
    max_class_share: float = 0.75
    seed: int = 0
    save_every_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise FovealError(f"{name}={getattr(self, name)}; it must be at least 1")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise FovealError(
                f"learning_rate={self.learning_rate}, weight_decay={self.weight_decay}; the first must be above 0, the "
                "other not below, and both finite"
            )
        if self.crop_size is not None and min(sides(self.crop_size)) < 1:
            raise FovealError(f"crop_size={self.crop_size}; give at least 1 pixel, or leave it out")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise FovealError(f"scales={self.scales}; give the lowest and the highest factor, above 0")
        if not 0 <= self.warm_up < 1 or self.schedule not in get_args(Schedule):
            raise FovealError(
                f"warm_up={self.warm_up}, schedule='{self.schedule}'; give a share of the steps below 1, and "
                f"{' or '.join(get_args(Schedule))}"
            )


PROTOCOLS: dict[Task, FitSettings] = {
    "classification": FitSettings(batch_size=256, weight_decay=0.01, schedule="one_cycle", warm_up=0.05),
    # arXiv 2304.07193, section 7.4: 40,000 steps of 16 crops of 512 pixels.
    "segmentation": FitSettings(),
    # Of NYU depth in the same section, as its successor's code states it: 38,400 steps of 16 crops of 416 x 544 pixels.
    # The first of AdamW's betas is kept at 0.9, where that code lets it run from 0.85 to 0.95.
    "depth": FitSettings(
        learning_rate=3e-4, beta2=0.99, schedule="one_cycle", warm_up=1 / 3, clip=35.0, scales=(1.0, 1.0)
    ),
}


def fit_settings(task: Task, **changed: Any) -> FitSettings:
    """Return the published settings of a task with some of them changed; None changes nothing.

    Example:
        >>> fit_settings("depth", steps=100).learning_rate
        0.0003
    """
    return replace(PROTOCOLS[task], **{name: value for name, value in changed.items() if value is not None})


def learning_rate_at(step: int, settings: FitSettings) -> float:
    """Return the rate of a step, counted from 0: peak x ramp x fall.

    With s = step / steps, the fall is 1 - s, (1 + cos(pi s)) / 2 or (1 - s) ** 0.9 (poly), and the ramp rises linearly
    to 1 over the share `warm_up` of the steps, from 1e-6, or 1e-3 (one_cycle).
    """
    share = step / settings.steps
    falls = {"linear": 1 - share, "one_cycle": (1 + math.cos(math.pi * share)) / 2, "poly": (1 - share) ** 0.9}
    lowest = 1e-3 if settings.schedule == "one_cycle" else 1e-6
    rising = settings.warm_up * settings.steps
    ramp = lowest + (1 - lowest) * step / rising if step < rising else 1.0
    return settings.learning_rate * ramp * falls[settings.schedule]
