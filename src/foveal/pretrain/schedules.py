"""Values that change with the step, as pure functions of the step."""

import math

from foveal.pretrain.recipe import Recipe


def warmup_cosine(
    step: int, *, base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> float:
    """Return a linear warm-up from `start` to `base`, then a cosine from `base` to `final`.

    The warm-up holds `warmup_steps` values, both ends included; the cosine is
    final + (base - final) (1 + cos(pi i / N)) / 2 for i = 0 .. N - 1 with N = total_steps - warmup_steps. From
    total_steps on the value is `final`. Source: the schedules of the public recipes (arXiv 2304.07193, appendix).

    Example:
        >>> [round(warmup_cosine(s, base=1.0, final=0.0, total_steps=5, warmup_steps=3), 3) for s in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return start + (base - start) * (step / (warmup_steps - 1) if warmup_steps > 1 else 0.0)
    if step >= total_steps:
        return final
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))


def linear_then_constant(step: int, *, start: float, end: float, warmup_steps: int) -> float:
    """Return a line from `start` to `end` over `warmup_steps` values, both ends included, then `end`."""
    if step >= warmup_steps:
        return end
    return start + (end - start) * (step / (warmup_steps - 1) if warmup_steps > 1 else 0.0)


def scheduled_rates(recipe: Recipe, step: int) -> dict[str, float]:
    """Return every scheduled value of a step: rates of heads, last layer and backbone, weight decay, and the teacher's.

    While the backbone is frozen its rate is 0; its warm-up and cosine begin after that.
    """
    optimizer, teacher = recipe.optimizer, recipe.teacher
    total, frozen = recipe.total_steps, optimizer.freeze_backbone_steps

    def lr_after(num_frozen: int) -> float:
        return warmup_cosine(
            step - num_frozen,
            base=recipe.lr,
            final=optimizer.min_lr,
            total_steps=total - num_frozen,
            warmup_steps=optimizer.warmup_steps,
        )

    lr = lr_after(0)
    return {
        "lr": lr,
        "backbone_lr": 0.0 if step < frozen else lr_after(frozen) * optimizer.backbone_lr_multiplier,
        "last_layer_lr": 0.0 if step < optimizer.freeze_last_layer_steps else lr,
        "weight_decay": warmup_cosine(
            step, base=optimizer.weight_decay_start, final=optimizer.weight_decay_end, total_steps=total
        ),
        "teacher_momentum": warmup_cosine(
            step, base=teacher.momentum_start, final=teacher.momentum_end, total_steps=total
        ),
        "teacher_temperature": linear_then_constant(
            step,
            start=teacher.temperature_start,
            end=teacher.temperature_end,
            warmup_steps=teacher.temperature_warmup_steps,
        ),
    }
