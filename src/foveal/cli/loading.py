"""How verbs that encode images open a model: the options of the model and its engine, and the call behind them."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.features.extract import Model

ModelOption = Annotated[str, typer.Option("--model", help="Model folder, checkpoint, or name in `foveal models`.")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="auto (the fastest within 0.9999 of fp32), torch or openvino.")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, bf16 or fp16.  [default: the engine's choice]")
]
FastOption = Annotated[bool, typer.Option("--fast", help="Also int8: cosine to fp32 at least 0.999.")]


def open_model(model: str, *, engine: str = "auto", precision: str | None = None, fast: bool = False) -> "Model":
    """Load a model with the engine that the options say; FovealError names a wrong one."""
    import foveal

    return foveal.load(model, engine=engine, precision=precision, fast=fast)  # type: ignore[arg-type]  # checked there
