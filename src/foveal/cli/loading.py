"""How verbs that encode images open a model: the options of the model and its engine, and the call behind them."""

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.engine.base import Precision
    from foveal.engine.choose import EngineName
    from foveal.features.extract import Model
    from foveal.images.preprocess import Mode, Size

ModelOption = Annotated[str, typer.Option("--model", help="Model folder, checkpoint, or name in `foveal models`.")]
EngineOption = Annotated[
    Literal["auto", "torch", "openvino"], typer.Option("--engine", help="auto is the fastest within 0.9999 of fp32.")
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16"] | None, typer.Option("--precision", help="[default: the engine's choice]")
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Pixels: one side, or height x width, 224x448.  [default: the model's]")
]
FitOption = Annotated[
    Literal["crop", "resize", "pad"], typer.Option("--fit", help="How pictures become whole patches; crop cuts off.")
]
FastOption = Annotated[bool, typer.Option("--fast", help="Also int8: cosine to fp32 at least 0.999.")]
NumHeadsOption = Annotated[
    int | None, typer.Option("--num-heads", help="Attention heads, where the files of the model do not tell.", min=1)
]


def open_model(
    model: str,
    *,
    engine: "EngineName" = "auto",
    precision: "Precision | None" = None,
    fast: bool = False,
    num_heads: int | None = None,
    size: "Size | None" = None,
    fit: "Mode" = "crop",
) -> "Model":
    """Load a model as the options say; those that the card alone rules out are refused before weights are read.

    Raises:
        FovealError: names the wrong option.
    """
    import foveal
    from foveal.backbone.source import peek_card
    from foveal.features.preprocessing import preprocessing_of

    if (card := peek_card(model)) is not None:
        preprocessing_of(card, size=size, fit=fit)
    return foveal.load(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)


def parse_size(text: str | None, *, option: str = "--size") -> "Size | None":
    """Return the pixels that an option says: of one side, or (height, width); FovealError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+)(?:[xX]([0-9]+))?", text.strip())
    if found is None or 0 in (sides := [int(side) for side in found.groups() if side is not None]):
        raise FovealError(f"{option} {text}; write pixels, such as 224, or height x width, such as 224x448")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
