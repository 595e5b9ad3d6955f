"""Signs of collapse in what the health probe measured, and what to change.

The limits are far below what runs that learn were seen to have, and above what collapsed ones have: see `_SIGNS`. A
sign counts once the learning rate has warmed up, when two measurements in a row are below its limit; it is over when
one is above one and a half times the limit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_IN_A_ROW = 2
_RECOVERED = 1.5

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Warned:
    """A warning: at which step, of which kind, in which words."""

    step: int
    kind: str
    text: str


class Size(NamedTuple):
    """N images that are measured, D width and K prototypes of the network."""

    num_images: int
    width: int
    num_prototypes: int


class _Sign(NamedTuple):
    kind: str
    value: Callable[[Numbers], float]
    limit: Callable[[Size], float]
    text: Callable[[Numbers, Size], str]


def warnings_of(lines: Sequence[Mapping[str, float]], *, size: Size, warmup_steps: int) -> list[Warned]:
    """Return the warnings that a run's measurements give, in their order, each kind once until it is over.

    Args:
        lines: what `HealthProbe.measure` returned, with "step", ascending.
        size: see `Size`.
        warmup_steps: measurements before that step do not count: the weights have hardly moved.
    """
    found = []
    for sign in _SIGNS:
        row, active = 0, False
        for line in lines:
            if line["step"] < warmup_steps or not _has(sign, line):
                continue
            value, limit = sign.value(line), sign.limit(size)
            row = row + 1 if value < limit else 0
            if row >= _IN_A_ROW and not active:
                found.append(Warned(int(line["step"]), sign.kind, sign.text(line, size)))
                active = True
            active = active and value <= _RECOVERED * limit
    return sorted(found, key=lambda warning: warning.step)


def limit_of(kind: str, size: Size) -> float:
    """Return the limit of a sign: "targets", "rank" or "neighbours"."""
    return next(sign.limit(size) for sign in _SIGNS if sign.kind == kind)


def information(numbers: Numbers) -> float:
    """Return how much a target says about its image, nats: entropy of the mean target less mean entropy."""
    return numbers["mean_target_entropy"] - numbers["target_entropy"]


def _has(sign: _Sign, line: Numbers) -> bool:
    try:
        return math.isfinite(sign.value(line))
    except KeyError:  # a learner without prototypes
        return False


def _targets(numbers: Numbers, size: Size) -> str:
    entropy, most = numbers["target_entropy"], math.log(size.num_prototypes)
    if entropy > 0.5 * most:
        return (
            f"the targets are the same spread over prototypes for every image (entropy {entropy:.2f} of "
            f"{most:.2f} nats): nothing is learned. Lower optimizer.base_lr or teacher.temperature_end, or use more "
            "images a step"
        )
    return (
        f"the targets are the same few prototypes for every image (entropy {entropy:.2f} of {most:.2f} nats). "
        "Set objective.centering=sinkhorn_knopp, or lower objective.center_momentum"
    )


def _rank(numbers: Numbers, size: Size) -> str:
    return (
        f"the features of {size.num_images} images span {numbers['rank_me']:.1f} directions of {size.width}: they "
        "collapse. Lower optimizer.base_lr, raise objective.koleo_weight, or lower teacher.temperature_end"
    )


def _twins(numbers: Numbers, _size: Size) -> str:
    return (
        f"an image and its nearest neighbour are {numbers['neighbour_distance']:.3f} apart of at most 2: features tell "
        "them no longer apart. Raise objective.koleo_weight, or lower optimizer.base_lr; look for duplicate images"
    )


# Runs that learn were seen at 0.05 nats and more, ranks of 4.8 and more and distances of 0.17 and more in the smallest
# networks; collapsed ones at 0.0005 nats, ranks of 1.6 to 2.1 and distances of 0.01 to 0.03.
_SIGNS = (
    _Sign("targets", information, lambda size: 1e-3 * math.log(min(size.num_images, size.num_prototypes)), _targets),
    _Sign("rank", lambda numbers: numbers["rank_me"], lambda size: max(3.0, 0.02 * min(size[:2])), _rank),
    _Sign("neighbours", lambda numbers: numbers["neighbour_distance"], lambda _size: 0.05, _twins),
)
