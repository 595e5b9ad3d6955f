"""What segment and depth share: the options of the fit, and the head that is fitted or taken up where it was left."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.loading import parse_size
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.evaluate.layouts.dense import DenseData
    from foveal.features.extract import Model
    from foveal.images.preprocess import Size
    from foveal.tasks.head import Head, HeadCard
    from foveal.tasks.protocols import FitSettings

StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Of the fit.  [default: as published]")]
FitBatchOption = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Pictures a step of the fit.  [default: 16]")
]
RateOption = Annotated[
    float | None, typer.Option("--learning-rate", help="Of the fit, the highest.  [default: as published]")
]
ShortSideOption = Annotated[
    str | None, typer.Option("--size", help="Short side of the pictures, pixels, or own.  [default: as published]")
]
CropsOption = Annotated[
    str | None,
    typer.Option(
        "--crop-size", help="Of crops, pixels; or whole: features computed once, far faster.  [default: as published]"
    ),
]
HeadOutOption = Annotated[Path | None, typer.Option("--head-out", help="Also keep the head in this folder.")]


def parse_short_side(text: str | None) -> "int | Literal['own'] | None":
    """Return what --size says."""
    if text == "own":
        return "own"
    size = parse_size(text)
    if isinstance(size, tuple):
        raise FovealError(f"--size {text}; give the short side in pixels, or own")
    return size


def parse_crops(text: str | None) -> "Size | Literal['whole'] | None":
    """Return what --crop-size says."""
    return "whole" if text == "whole" else parse_size(text, option="--crop-size")


def check_head_out(folder: Path | None) -> None:
    """Refuse a folder that cannot keep the head; call it before any long work."""
    if folder is not None:
        from foveal.tasks.head import check_target

        check_target(folder)


def fitted_head(
    model: "Model",
    card: "HeadCard",
    data: "DenseData",
    settings: "FitSettings",
    *,
    folder: Path | None,
    head_out: Path | None,
) -> "Head":
    """Return the head of a card, fitted on the train pictures.

    Args:
        model: the backbone.
        card: of the head.
        data: whose masks or depths are all read first.
        settings: of the fit.
        folder: of unfinished work: a fit that was begun there goes on, one that was finished is not repeated.
        head_out: where else the head is kept.
    """
    from foveal.tasks.fit import fit_head
    from foveal.tasks.head import load_head, save_head

    done, state = (None, None) if folder is None else (folder / "head", folder / "fit.safetensors")
    if done is not None and done.is_dir():
        head = load_head(done)
    else:
        if state is None or not state.is_file():
            with progress_of("reading") as progress:
                data.check(progress)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with progress_of("fitting") as progress:
            head = fit_head(model, card, data.train, settings, state=state, progress=progress)
        if done is not None and state is not None:
            save_head(done, head)
            state.unlink()
    if head_out is not None:
        save_head(head_out, head)
    return head
