"""Values that change with the step, as pure functions of the step."""

import math


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
