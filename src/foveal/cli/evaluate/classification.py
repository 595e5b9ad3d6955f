"""What the protocols of classification share: the options of labelled images, and the call that reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.evaluate.results import report_results
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.evaluate.few_shot import FewShot
    from foveal.evaluate.layouts.classification import Classification
    from foveal.evaluate.results import Measure
    from foveal.features.extract import Model

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Labelled images: a folder with train/ and test/ or val/ of CLASS/name.jpg, with train.txt and test.txt, "
        "ImageNet as distributed, or one labelled set, of which --split is held out.",
    ),
]
TrainOption = Annotated[str | None, typer.Option("--train", help="Instead of --data: labelled images to learn from.")]
TestOption = Annotated[str | None, typer.Option("--test", help="Labelled images that are classified.")]
SplitOption = Annotated[
    float | None, typer.Option("--split", help="Of one labelled set: share held out by uri.  [default: 0.2]")
]
NPerClassOption = Annotated[
    int | None, typer.Option("--n-per-class", help="Few-shot: train images of each class.", min=1)
]
NTriesOption = Annotated[int | None, typer.Option("--n-tries", help="Few-shot: number of draws.  [default: 5]", min=1)]


def few_shot_of(n_per_class: int | None, n_tries: int | None) -> "FewShot | None":
    """Return what the options of few-shot evaluation say; None for all train images."""
    if n_per_class is None:
        if n_tries is not None:
            raise FovealError("--n-tries has no effect without --n-per-class; add that, or leave it out")
        return None
    from foveal.evaluate.few_shot import FewShot

    return FewShot(n_per_class) if n_tries is None else FewShot(n_per_class, n_tries)


def report_classified(
    context: typer.Context,
    measures: "Sequence[Measure]",
    *,
    protocol: str,
    model: "Model",
    data: "Classification",
    out: Path | None,
    title: str,
) -> None:
    """Print what a protocol found on labelled images and keep it in `out`; see `report_results`."""
    report_results(
        context,
        measures,
        protocol=protocol,
        model=model,
        data=data.name,
        data_hash=data.hash,
        out=out,
        title=f"{title}, {data.sizes}",
    )
