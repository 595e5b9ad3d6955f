"""What the protocols of classification share: the options of labelled images, and the call that reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.evaluate.results import report_results

if TYPE_CHECKING:
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
