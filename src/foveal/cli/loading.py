"""How verbs that encode images open a model: the options of the engine, and the call behind them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.features.extract import Model

EngineOption = Annotated[
    str, typer.Option("--engine", help="auto (the fastest within 0.9999 of fp32), torch or openvino.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, bf16 or fp16.  [default: the engine's choice]")
]
FastOption = Annotated[bool, typer.Option("--fast", help="Also int8: cosine to fp32 at least 0.999.")]


def open_model(folder: Path, *, engine: str, precision: str | None, fast: bool) -> "Model":
    """Load a model folder with the engine that the options say; FovealError names a wrong one."""
    import foveal

    return foveal.load(folder, engine=engine, precision=precision, fast=fast)  # type: ignore[arg-type]  # checked there
