"""The heads that can be fitted: by task, under the names by which they are published."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.tasks.dense import quarter_layers
from foveal.tasks.head import HeadCard, Task

Blocks = Literal["last", "last_four", "quarters"]


class Kind(NamedTuple):
    """What a head is and what it reads.

    Attributes:
        architecture: of the network; see `foveal.tasks.head`.
        blocks: the last one, the last four, or the ends of the four quarters.
        norm: whether they are read after the final norm.
    """

    architecture: str
    blocks: Blocks
    norm: bool


KINDS: dict[Task, dict[str, Kind]] = {
    "classification": {
        "linear": Kind("linear", "last", norm=True),
        "linear4": Kind("linear", "last_four", norm=True),
        "mlp": Kind("mlp", "last", norm=True),
        "attentive": Kind("attentive", "last", norm=True),
    },
    "segmentation": {
        "linear": Kind("linear", "last", norm=True),
        "ms": Kind("linear", "last_four", norm=True),
        "mlp": Kind("mlp", "last", norm=True),
        "dpt": Kind("dpt", "quarters", norm=False),
    },
    "depth": {
        "lin.1": Kind("linear", "last", norm=False),
        "lin.4": Kind("linear", "quarters", norm=False),
        "dpt": Kind("dpt", "quarters", norm=False),
    },
}


def find_kind(task: Task, name: str) -> Kind:
    """Return a kind of head by its name; FovealError names those of the task."""
    if task not in KINDS:
        raise FovealError(f"no head is fitted for '{task}'; choose {', '.join(KINDS)}")
    if name not in KINDS[task]:
        raise FovealError(f"no {task} head is called '{name}'; choose {', '.join(KINDS[task])}")
    return KINDS[task][name]


def head_card(
    model: Model,
    task: Task,
    name: str,
    *,
    classes: Sequence[str] = (),
    min_depth: float = 0.001,
    max_depth: float = 10.0,
) -> HeadCard:
    """Return the card of a head that is to be fitted on a model.

    Args:
        model: the backbone.
        task: what the head answers.
        name: of the kind, a key of `KINDS[task]`.
        classes: names, for labels and masks.
        min_depth: of the range, metres.
        max_depth: of the range, metres.

    Raises:
        FovealError: an unknown kind, or one that reads more blocks than there are.
    """
    kind, backbone = find_kind(task, name), model.card.backbone
    layers = _layers(kind.blocks, backbone.depth)
    settings: dict[str, Any] = {"num_levels": len(layers)} if kind.architecture == "linear" else {}
    if kind.architecture == "attentive":
        settings["num_heads"] = backbone.num_heads
    if task != "depth":
        settings["num_classes"] = len(classes)
    else:
        settings |= {"min_depth": min_depth, "max_depth": max_depth}
    return HeadCard(
        name=f"{name} on {model.card.name}",
        task=task,
        architecture=kind.architecture,
        settings=settings,
        layers=list(layers),
        norm=kind.norm,
        backbone=model.identity,
        backbone_name=model.card.name,
        width=backbone.width,
        depth=backbone.depth,
        classes=list(classes),
        licence=model.card.licence.unaccepted(),
        lineage={"kind": name},
    )


def _layers(blocks: Blocks, depth: int) -> tuple[int, ...]:
    if blocks == "last":
        return (depth - 1,)
    quarters = quarter_layers(depth)
    return quarters if blocks == "quarters" else tuple(range(depth - len(quarters), depth))
