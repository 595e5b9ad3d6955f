"""How verbs that encode images open a model: the options of the model and its engine, and the call behind them."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.features.extract import Model
    from foveal.images.preprocess import Size

ModelOption = Annotated[str, typer.Option("--model", help="Model folder, checkpoint, or name in `foveal models`.")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="auto (the fastest within 0.9999 of fp32), torch or openvino.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, bf16 or fp16.  [default: the engine's choice]")
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Pixels: one side, or height x width, 224x448.  [default: the model's]")
]
FastOption = Annotated[bool, typer.Option("--fast", help="Also int8: cosine to fp32 at least 0.999.")]


def open_model(model: str, *, engine: str = "auto", precision: str | None = None, fast: bool = False) -> "Model":
    """Load a model with the engine that the options say; FovealError names a wrong one."""
    import foveal

    return foveal.load(model, engine=engine, precision=precision, fast=fast)  # type: ignore[arg-type]  # checked there


def parse_size(text: str | None) -> "Size | None":
    """Return the pixels that --size says: of one side, or (height, width); FovealError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+)(?:[xX]([0-9]+))?", text.strip())
    if found is None or 0 in (sides := [int(side) for side in found.groups() if side is not None]):
        raise FovealError(f"--size {text}; write pixels, such as 224, or height x width, such as 224x448")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
