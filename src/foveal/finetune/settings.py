"""How a backbone and its head are fine-tuned: the settings, and their published values for each task."""

from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal, get_args

from foveal.errors import FovealError
from foveal.tasks.head import Task
from foveal.tasks.protocols import FitSettings, Schedule

TrainPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class FinetuneSettings(FitSettings):
    """How a backbone and its head are trained; the defaults are those of Depth Anything V2 on fewer steps.

    `learning_rate` is that of the backbone's last layers. What is not listed here is as in `FitSettings`.

    Attributes:
        head_multiplier: learning rate of the head, as a multiple of the backbone's.
        layer_decay: factor of the learning rate from each block to the one below it; 1 trains all blocks alike.
        drop_path: rate of stochastic depth.
        lora_rank: train low-rank changes of this rank instead of the backbone's weights; None trains the weights.
        freeze_blocks: so many first blocks stay as they are, and all that is before them.
        recompute: run each block again in the backward pass: the same numbers, a third more time, far less memory.
        label_smoothing: of labels, the share that is spread over all classes (arXiv 1512.00567, section 7).
        precision: of the backbone's products; heads, losses and weights are always float32.
    """

    learning_rate: float = 5e-6
    weight_decay: float = 0.01
    schedule: Schedule = "poly"
    warm_up: float = 0.0
    save_every_s: float = 300.0
    head_multiplier: float = 10.0
    layer_decay: float = 1.0
    drop_path: float = 0.0
    lora_rank: int | None = None
    freeze_blocks: int = 0
    recompute: bool = False
    label_smoothing: float = 0.0
    precision: TrainPrecision = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.head_multiplier < inf and (self.clip is None or self.clip > 0)):
            raise FovealError(
                f"head_multiplier={self.head_multiplier}, clip={self.clip}; both must be above 0; without a clip "
                "gradients keep their size"
            )
        if not 0 < self.layer_decay <= 1:
            raise FovealError(f"layer_decay={self.layer_decay}; give a factor above 0, at most 1, such as 0.75")
        for name in ("drop_path", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise FovealError(f"{name}={getattr(self, name)}; give a share of at least 0, below 1, such as 0.1")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise FovealError(f"lora_rank={self.lora_rank}; it must be at least 1; leave it out to train all weights")
        if self.freeze_blocks < 0:
            raise FovealError(f"freeze_blocks={self.freeze_blocks}; give a number of blocks, at least 0")
        if self.precision not in get_args(TrainPrecision):
            raise FovealError(f"precision='{self.precision}'; choose {' or '.join(get_args(TrainPrecision))}")


# Labels: layer decay, stochastic depth, weight decay, label smoothing and one rate for backbone and head as in arXiv
# 2111.06377, table 9, with a rate for small batches and few steps. Masks and depth: AdamW, 5e-6 for the backbone,
# ten times that for the head, weight decay 0.01, power 0.9, as in arXiv 2406.09414 and its code for metric depth.
PROTOCOLS: dict[Task, FinetuneSettings] = {
    "classification": FinetuneSettings(
        batch_size=32,
        learning_rate=1e-4,
        weight_decay=0.05,
        schedule="one_cycle",
        warm_up=0.05,
        head_multiplier=1.0,
        layer_decay=0.75,
        drop_path=0.1,
        label_smoothing=0.1,
    ),
    "segmentation": FinetuneSettings(),
    "depth": FinetuneSettings(scales=(1.0, 1.0)),
}
_LORA_RATE = 1e-4  # B begins with 0, and 5e-6 would hardly move it


def finetune_settings(task: Task, **changed: Any) -> FinetuneSettings:
    """Return the settings of a task with some of them changed; None changes nothing.

    With a `lora_rank` the learning rate is 1e-4 where none is given.

    Example:
        >>> finetune_settings("depth", steps=100).weight_decay
        0.01
    """
    given = {name: value for name, value in changed.items() if value is not None}
    if "lora_rank" in given:
        given.setdefault("learning_rate", _LORA_RATE)
    return replace(PROTOCOLS[task], **given)
