"""The dense heads that can be fitted, by the names under which they are published."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.tasks.dense import quarter_layers
from foveal.tasks.head import HeadCard, Task

Kind = Literal["linear", "ms", "lin.1", "lin.4", "dpt"]


def task_of(kind: str) -> Task:
    """Return what a kind of head answers; FovealError for an unknown one."""
    if kind not in get_args(Kind):
        raise FovealError(f"no head is called '{kind}'; choose linear or ms for masks, lin.1, lin.4 or dpt for depth")
    return "segmentation" if kind in ("linear", "ms") else "depth"


def head_card(
    model: Model,
    kind: Kind,
    *,
    classes: Sequence[str] = (),
    min_depth: float = 0.001,
    max_depth: float = 10.0,
) -> HeadCard:
    """Return the card of a head that is to be fitted on a model.

    Args:
        model: the backbone.
        kind: "linear" and "ms" read the last one or four blocks for masks; "lin.1" reads the last block for depth,
            "lin.4" and "dpt" the ends of the four quarters, before the final norm.
        classes: names, for masks.
        min_depth: of the range, metres.
        max_depth: of the range, metres.

    Raises:
        FovealError: an unknown kind, or one that reads more blocks than there are.
    """
    task, backbone = task_of(kind), model.card.backbone
    single = kind in ("linear", "lin.1")
    layers = (backbone.depth - 1,) if single else quarter_layers(backbone.depth)
    settings: dict[str, Any] = {"num_levels": len(layers)}
    if task == "segmentation":
        layers = tuple(range(backbone.depth - len(layers), backbone.depth))
        settings["num_classes"] = len(classes)
    else:
        settings = {"min_depth": min_depth, "max_depth": max_depth, **({} if kind == "dpt" else settings)}
    return HeadCard(
        name=f"{kind} on {model.card.name}",
        task=task,
        architecture="dpt" if kind == "dpt" else "linear",
        settings=settings,
        layers=list(layers),
        norm=task == "segmentation",
        backbone=model.identity,
        backbone_name=model.card.name,
        width=backbone.width,
        depth=backbone.depth,
        classes=list(classes),
        licence=model.card.licence,
        lineage={"kind": kind},
    )
